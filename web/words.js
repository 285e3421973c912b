// Numbers, times and states in the words that people read. Pure; nothing here knows the page.

/** `0.4 s`, `12 s`, `3 min`, `5 h`, `2 d` of a span in ms. */
export function span(ms) {
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129_600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} d`;
}

/** How long ago something was, coarse enough not to flicker. */
export function ago(unixMs, nowMs) {
  const ms = nowMs - unixMs;
  return ms < 1500 ? "just now" : `${span(Math.floor(ms / 1000) * 1000).replace(".0 s", " s")} ago`;
}

/** The time of day, with the date unless it is of today. */
export function clock(unixMs, nowMs) {
  const at = new Date(unixMs);
  const pad = (number) => String(number).padStart(2, "0");
  const time = `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
  if (at.toDateString() === new Date(nowMs).toDateString()) return time;
  return `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} ${time}`;
}

/** `812 B`, `1.5 MiB`, `8 GiB`. */
export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let figure = count;
  let unit = 0;
  while (figure >= 1024 && unit < units.length - 1) {
    figure /= 1024;
    unit += 1;
  }
  const text = unit === 0 || figure >= 99.95 ? figure.toFixed(0) : figure.toFixed(1).replace(/\.0$/, "");
  return `${text} ${units[unit]}`;
}

/** `0.24 ms`, `18 ms`. */
export function milliseconds(ms) {
  if (ms === undefined) return "not measured";
  return `${ms >= 10 ? ms.toFixed(0) : String(Number(ms.toPrecision(2)))} ms`;
}

/** `1 node`, `3 nodes`. */
export function count(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

/** `a`, `a and b`, `a, b and c`. */
export function listed(names) {
  if (names.length < 2) return names.join("");
  return `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

/** With a capital first letter, unless it begins with one of these names, which are written as they are. */
export function sentence(text, names = []) {
  if (!text || names.includes(text.split(/[ :,]/)[0])) return text ?? "";
  return text[0].toUpperCase() + text.slice(1);
}

/** `good`, `busy`, `warn`, `bad` or `idle`: how a state of a node, a container or a link is coloured. */
export function tone(state) {
  const tones = {
    member: "good", ready: "good", running: "good", up: "good",
    joining: "busy", probation: "busy", draining: "busy", starting: "busy", recovering: "busy", stopping: "busy",
    suspected: "warn", degraded: "warn", "one-way": "warn", frozen: "warn",
    eliminated: "bad", failed: "bad", lost: "bad", down: "bad", removed: "bad",
  };
  return tones[state] ?? "idle";
}
