// Numbers as people read them: the same words as the command line's tables (aicache_tasks/reports/wording.py).

export const NOTHING = "-";
const BYTES = ["B", "KB", "MB", "GB", "TB", "PB"];
const LONG = [["d", 86400], ["h", 3600], ["min", 60]];
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const grouped = new Intl.NumberFormat("en-US", { maximumFractionDigits: 15 });

// Python's round() takes the even one of two that are equally near; so does this.
function rounded(value, digits = 0) {
  const scale = 10 ** digits, scaled = value * scale, low = Math.floor(scaled), half = scaled - low;
  if (Math.abs(half - 0.5) < 1e-9) return (low % 2 === 0 ? low : low + 1) / scale;
  return Math.round(scaled) / scale;
}

function three(value) {
  const digits = value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return rounded(value, digits).toLocaleString("en-US", { maximumFractionDigits: digits });
}

export function duration(ns) {
  if (ns === null || ns === undefined) return NOTHING;
  if (!ns) return "0";
  const seconds = rounded(ns / 1e9);
  if (seconds >= 60) return long(seconds);
  for (const [unit, size] of [["s", 1e9], ["ms", 1e6], ["µs", 1e3]]) {
    if (ns >= 0.9995 * size || unit === "µs") return `${three(ns / size)} ${unit}`;
  }
}

function long(seconds) {
  const smaller = [...LONG.slice(1), ["s", 1]];
  for (const [at, [unit, size]] of LONG.entries()) {
    if (seconds < size) continue;
    const first = Math.floor(seconds / size), rest = Math.floor((seconds % size) / smaller[at][1]);
    return rest ? `${number(first)} ${unit} ${rest} ${smaller[at][0]}` : `${number(first)} ${unit}`;
  }
}

export const milliseconds = (ms) => duration(ms === null || ms === undefined ? null : ms * 1e6);
export const seconds = (s) => duration(s === null || s === undefined ? null : s * 1e9);

export function size(count) {
  if (count === null || count === undefined) return NOTHING;
  let at = 0;
  while (count >= 999.5 && at < BYTES.length - 1) { count /= 1000; at += 1; }
  return `${three(count)} ${BYTES[at]}`;
}

export function number(count) {
  if (count === null || count === undefined) return NOTHING;
  if (Math.abs(count) >= 1e12) return Number(count.toPrecision(3)).toExponential();
  if (Math.abs(count) >= 1e7) return `${three(count / 1e6)} M`;
  return Number.isInteger(count) || count >= 1000 ? grouped.format(count) : three(count);
}

export function percent(share) {
  if (share === null || share === undefined) return NOTHING;
  if (share > 0 && share < 0.001) return "<0.1 %";
  const shown = three(100 * share);
  return shown === "100" && share < 1 ? ">99.9 %" : `${shown} %`;
}

export function money(amount, currency) {
  if (amount === null || amount === undefined) return NOTHING;
  const shown = amount >= 0.995 || !amount ? amount.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 }) : String(Number(amount.toPrecision(2)));
  return currency ? `${shown} ${currency}` : shown;
}

// A value in one of the units that alerts have.
export function measured(value, unit) {
  if (value === null || value === undefined) return NOTHING;
  if (unit === "ms") return milliseconds(value);
  if (unit === "bytes") return size(value);
  return unit === "hits / look-ups" ? percent(value) : `${number(value)} ${unit}`;
}

const two = (value) => String(value).padStart(2, "0");

export function clock(s) {
  const at = new Date(s * 1000);
  return `${two(at.getUTCHours())}:${two(at.getUTCMinutes())}`;
}

export function day(s) {
  const at = new Date(s * 1000);
  return `${at.getUTCDate()} ${MONTHS[at.getUTCMonth()]}`;
}

// A window's name: all times are UTC, as the records' windows are.
export function windowName(s, length) {
  if (length >= 86400) return day(s);
  return `${day(s)} ${clock(s)}–${clock(s + length)}`;
}
