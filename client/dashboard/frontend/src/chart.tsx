import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";

import { SECONDS_KEPT } from "./history";
import type { Figure } from "./messages";

export interface Line {
  label: string;
  color: "one" | "two" | "three"; // a class of panels.css
  dash?: number[];
  fill?: boolean;
  column: Figure[];
}

interface ChartProps {
  id: string;
  title: string;
  times: number[];
  lines: Line[];
  format: (value: Figure) => string;
}

const HEIGHT = 168;
const MINUTES = [180, 120, 60, 0];

/** Lines over the last three minutes, with the figures in words above. */
export function Chart({ id, title, times, lines, format }: ChartProps) {
  const canvas = useRef<HTMLDivElement>(null);
  const keys = useRef<HTMLSpanElement>(null);
  const plot = useRef<uPlot | null>(null);
  const [pointed, setPointed] = useState<number | null>(null);
  const data: uPlot.AlignedData = [times, ...lines.map((line) => line.column)];

  useEffect(() => {
    const element = canvas.current!;
    // The style sheet's colours, as they are now: a canvas does not follow them.
    const color = (index: number) => {
      const key = keys.current!.children[index] as HTMLElement;
      return getComputedStyle(key).color;
    };
    const axis = { stroke: () => getComputedStyle(element).color, font: "12px system-ui, sans-serif" };
    const grid = { stroke: () => getComputedStyle(element).borderTopColor, width: 1 };
    plot.current = new uPlot(
      {
        width: element.clientWidth,
        height: HEIGHT,
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
        scales: {
          x: { time: false, range: (_plot, _min, max) => [(max ?? 0) - SECONDS_KEPT, max ?? 0] },
          y: { range: (_plot, _min, max) => [0, nice(max)] },
        },
        axes: [
          {
            ...axis,
            grid: { show: false },
            ticks: { show: false },
            size: 28,
            gap: 8,
            splits: (self) => MINUTES.map((ago) => (self.scales.x?.max ?? 0) - ago),
            values: () => MINUTES.map((ago) => (ago ? `−${ago / 60} min` : "now")),
          },
          {
            ...axis,
            grid,
            ticks: { show: false },
            size: 68,
            gap: 6,
            splits: (self) => {
              const top = self.scales.y?.max ?? 1;
              return [0, top / 2, top];
            },
            values: (_self, splits) => splits.map((value) => (value ? format(value) : "0")),
          },
        ],
        series: [
          {},
          ...lines.map((line, index): uPlot.Series => ({
            label: line.label,
            stroke: () => color(index),
            width: 2,
            points: { show: false },
            ...(line.dash ? { dash: line.dash } : {}),
            ...(line.fill ? { fill: () => faded(color(index)) } : {}),
          })),
        ],
        hooks: { setCursor: [(self) => setPointed(self.cursor.idx ?? null)] },
      },
      data,
      element,
    );
    const resized = new ResizeObserver(() => {
      if (element.clientWidth) plot.current?.setSize({ width: element.clientWidth, height: HEIGHT });
    });
    resized.observe(element);
    const redraw = () => plot.current?.redraw(false);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", redraw);
    window.addEventListener("themechange", redraw);
    return () => {
      resized.disconnect();
      dark.removeEventListener("change", redraw);
      window.removeEventListener("themechange", redraw);
      plot.current?.destroy();
    };
  }, []);

  useEffect(() => plot.current?.setData(data));

  const last = times.length - 1;
  const at = pointed !== null && pointed <= last ? pointed : last;
  const ago = Math.round((times[last] ?? 0) - (times[at] ?? 0));
  return (
    <section class="panel chart" aria-labelledby={id}>
      <h2 id={id}>
        {title} <span class="quiet when">{ago ? `${ago} s ago` : "now"}</span>
      </h2>
      <p class="keys">
        <span ref={keys}>
          {lines.map((line) => (
            <span key={line.label} class={`key ${line.color}`}>
              <i class={line.dash ? "dashed" : ""} aria-hidden="true" />
              <span class="quiet">{line.label}</span>{" "}
              <b>{format(line.column[at] ?? null)}</b>
            </span>
          ))}
        </span>
      </p>
      <div ref={canvas} class="canvas" role="img" aria-label={`${title}, the last three minutes`} />
    </section>
  );
}

/** The next figure above that halves well: 1, 2, 4, 5, 6, 8, 10 times a power of ten. */
function nice(max: number | null): number {
  if (!max || max <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(max));
  for (const step of [1, 2, 4, 5, 6, 8]) if (step * power >= max) return step * power;
  return 10 * power;
}

function faded(color: string): string {
  const parts = /^rgba?\(([^)]+)\)$/.exec(color)?.[1]?.split(/[ ,/]+/) ?? [];
  return parts.length < 3 ? "transparent" : `rgba(${parts.slice(0, 3).join(",")},0.14)`;
}
