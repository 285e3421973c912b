// The message-sequence picture of an instance: who exchanges what with it, and how far each exchange has come.
//
// Life lines stand side by side, the instance first; each message that is not finished is four arrows, of which those that were made
// are drawn whole. Episodes that are over are one arrow each. `rows`, `lines` and `arrows` are pure.

import { h } from "./dom.js";
import { clock } from "./words.js";

/** So many life lines, and so many rows, are drawn at most. */
export const LINES_MAX = 5;
export const ROWS_MAX = 24;
/** The four steps of an exchange; odd ones go the other way. */
const STEPS = ["message", "ack", "confirm", "confirm-ack"];
const LINE = 190;
const TOP = 46;
const STEP = 20;
const MARGIN = 90;

/**
 * What is drawn, the oldest first: `{from, to, label, made, note, tone, at}` for each exchange, where `made` of its four steps were
 * made for certain, seen from this end.
 */
export function rows(shown, history) {
  const own = shown.name;
  const past = history.filter((one) => one.source).map((one) => ({
    from: one.source, to: own, label: one.kind, made: 4, tone: isRefusal(one) ? "bad" : "done", at: one.at_unix_ms, note: `episode ${one.episode}`,
  }));
  const come = shown.peers.flatMap((peer) => (peer.messages ?? []).map((message) => ({
    from: peer.name, to: own, label: named(message), made: 2, tone: "busy", note: "not confirmed yet",
  })));
  const waiting = shown.events.filter((event) => event.source).map((event) => inInbox(shown, event));
  const sent = shown.outboxes.flatMap((outbox) => (outbox.messages ?? []).map((message) => exchange(own, outbox, message)));
  return [...past, ...come, ...waiting, ...sent].slice(-ROWS_MAX);
}

/** An event that was not consumed. What became of its exchange is another matter. */
function inInbox(shown, event) {
  const row = { from: event.source, to: shown.name, label: event.kind, made: 0 };
  if (isRefusal(event)) return { ...row, tone: "bad", note: "a message to it was refused, or given up" };
  const isStill = ["parked", "paused", "failing"].includes(shown.doing);
  return isStill ? { ...row, tone: "warn", note: `parked: this instance is ${shown.doing}` } : { ...row, tone: "busy", note: "in the inbox, not consumed" };
}

function isRefusal(event) {
  return event.kind === "undeliverable";
}

function exchange(own, outbox, message) {
  const made = { message: 1, confirm: 3, "confirm-ack": 4, "given-up": 1 }[message.step] ?? 0;
  const isRefused = message.step === "given-up";
  const again = outbox.attempts > 0 ? `, said again ${outbox.attempts} ${outbox.attempts === 1 ? "time" : "times"}` : "";
  const note = { message: `no ack yet${again}`, confirm: `no confirm-ack yet${again}`, "given-up": "refused, or given up" }[message.step] ?? "";
  const tone = isRefused ? "bad" : outbox.attempts > 0 ? "warn" : "busy";
  return { from: own, to: outbox.to, label: named(message), made, note, tone };
}

function named(message) {
  return message.kind ? `${message.kind} (${message.seq})` : `number ${message.seq}`;
}

/** The life lines of these rows: the instance, then the others in the order of their rows from the newest. */
export function lines(own, all) {
  const others = [...all].reverse().map((one) => (one.from === own ? one.to : one.from)).filter((name) => name !== own);
  const found = [...new Set(others)];
  const rest = found.length > LINES_MAX - 1 ? ["others"] : [];
  return [own, ...found.slice(0, LINES_MAX - 1 - rest.length), ...rest];
}

/** The arrows of one exchange: `{step, isBack, isMade}`. What is over, or only waits in the inbox, is one arrow. */
export function arrows(row) {
  if (row.made === 4 || row.made === 0) return [{ step: row.label, isBack: false, isMade: true }];
  return STEPS.map((step, index) => ({ step: index === 0 ? row.label : step, isBack: index % 2 === 1, isMade: index < row.made }));
}

/** The picture. */
export function sequence(shown, history, now) {
  const all = rows(shown, history);
  if (all.length === 0) return h("p", { class: "quiet" }, "No exchange with another instance is remembered.");
  const heads = lines(shown.name, all);
  const place = (name) => MARGIN + LINE * Math.max(0, heads.includes(name) ? heads.indexOf(name) : heads.length - 1);
  let y = TOP;
  const drawn = all.map((row, index) => {
    const top = y;
    const parts = arrows(row).map((arrow, at) => {
      const [left, right] = arrow.isBack ? [place(row.to), place(row.from)] : [place(row.from), place(row.to)];
      return line(arrow, left, right, top + STEP * (at + 1), at);
    });
    y += STEP * parts.length + 12;
    const said = row.at === undefined ? row.note : `${clock(row.at, now)}, ${row.note}`;
    const words = `${row.from} to ${row.to}: ${row.label}, ${said}`;
    return h("g", { key: index, class: `exchange ${row.tone}`, "data-made": row.made, role: "img", "aria-label": words },
      h("title", null, words), parts,
      h("text", { class: "note", x: MARGIN + LINE * (heads.length - 1) + 12, y: top + STEP + 4 }, said));
  });
  const width = MARGIN * 2 + LINE * (heads.length - 1) + 200;
  return h("div", { class: "scroll" }, h("svg", { class: "sequence", width, height: y + 8, viewBox: `0 0 ${width} ${y + 8}` },
    heads.map((name) => h("g", { key: name, class: "lifeline" },
      h("line", { x1: place(name), x2: place(name), y1: 30, y2: y }),
      h("text", { x: place(name), y: 20, "text-anchor": "middle" }, h("title", null, name), short(name)))),
    drawn));
}

function line(arrow, left, right, y, key) {
  if (left === right) {
    return h("g", { key, class: arrow.isMade ? "arrow" : "arrow open" },
      h("path", { d: `M${left} ${y - 8}h24v8h-20` }), h("text", { x: left + 30, y: y - 2 }, arrow.step));
  }
  const tip = right > left ? -7 : 7;
  return h("g", { key, class: arrow.isMade ? "arrow" : "arrow open" },
    h("line", { x1: left, x2: right, y1: y, y2: y }),
    h("path", { class: "tip", d: `M${right} ${y}l${tip} -4v8z` }),
    h("text", { x: (left + right) / 2, y: y - 4, "text-anchor": "middle" }, arrow.step));
}

function short(name) {
  return name.length > 24 ? `${name.slice(0, 11)}…${name.slice(-12)}` : name;
}
