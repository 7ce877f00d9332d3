// Figures as people read them, short whatever a message claims: they are the word of other machines.

export const NONE = "–";
const TOO_LARGE = 1e15;

function isAbsurd(value: number): boolean {
  return !(Math.abs(value) < TOO_LARGE);
}

export function count(value: number | null | undefined): string {
  if (value == null) return NONE;
  return isAbsurd(value) ? "?" : Math.round(value).toLocaleString("en");
}

/** Three digits that mean something: 0.42, 4.21, 42.1, 421, 4,210. */
export function figure(value: number | null | undefined): string {
  if (value == null) return NONE;
  if (isAbsurd(value)) return "?";
  const size = Math.abs(value);
  if (size === 0) return "0";
  return value.toLocaleString("en", {
    maximumFractionDigits: size < 10 ? 2 : size < 100 ? 1 : 0,
    minimumFractionDigits: size < 10 ? 2 : size < 100 ? 1 : 0,
  });
}

export function percent(share: number | null | undefined): string {
  if (share == null) return NONE;
  return share >= 0 && share < 10 ? `${Math.round(share * 100)} %` : "?";
}

/** A time from milliseconds, in the unit that suits it. */
export function duration(ms: number | null | undefined): string {
  if (ms == null) return NONE;
  return Math.abs(ms) >= 1000 ? `${figure(ms / 1000)} s` : `${figure(ms)} ms`;
}

const UNITS = ["B", "KB", "MB", "GB", "TB"];

/** Powers of 1000, as the command line prints sizes. */
export function bytes(value: number | null | undefined): string {
  if (value == null) return NONE;
  if (isAbsurd(value)) return "?";
  let unit = 0;
  let size = value;
  while (size >= 999.5 && unit < UNITS.length - 1) {
    size /= 1000;
    unit += 1;
  }
  const text = unit === 0 || size >= 99.95 ? size.toFixed(0) : size.toFixed(1);
  return `${text} ${UNITS[unit]}`;
}

export function rate(bytesPerS: number | null | undefined): string {
  return bytesPerS == null ? NONE : `${bytes(bytesPerS)}/s`;
}

/** 42 s, 4 min, 3 h, 2 d. */
export function age(seconds: number | null | undefined): string {
  if (seconds == null) return NONE;
  if (isAbsurd(seconds)) return "?";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129_600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} d`;
}

export function clock(unixS: number): string {
  const time = new Date(unixS * 1000);
  return Number.isNaN(time.getTime()) ? "?" : time.toLocaleTimeString("en-GB");
}

/** `under_voltage_earlier` as words. */
export function words(name: string): string {
  return name.replaceAll("_", " ");
}
