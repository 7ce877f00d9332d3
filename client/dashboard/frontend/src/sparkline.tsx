import type { Figure } from "./messages";

import { SECONDS_KEPT } from "./history";

const WIDTH = 90;
const HEIGHT = 22;

/** Shares of the last three minutes as a line; where nothing was known there is none. */
export function Sparkline({ column }: { column: Figure[] }) {
  const offset = SECONDS_KEPT - column.length;
  let path = "";
  let drawing = false;
  column.forEach((value, index) => {
    if (value === null) {
      drawing = false;
      return;
    }
    const x = (((offset + index) / (SECONDS_KEPT - 1)) * WIDTH).toFixed(1);
    const y = (HEIGHT - 1.5 - Math.min(1, value) * (HEIGHT - 3)).toFixed(1);
    path += `${drawing ? "L" : "M"}${x} ${y}`;
    drawing = true;
  });
  return (
    <svg class="sparkline" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} width={WIDTH} height={HEIGHT} aria-hidden="true">
      <path class="floor" d={`M0 ${HEIGHT - 1}H${WIDTH}`} />
      <path class="line" d={path} />
    </svg>
  );
}
