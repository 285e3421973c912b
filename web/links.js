// The link matrix: for each network, how well each node hears each other one.
//
// A row hears, a column is heard. Arrow keys move between the cells, and what is under the pointer or has the focus is told
// below. `heat`, `typical` and `sentenceOf` are pure.

import { h } from "./dom.js";
import { ordered } from "./judge.js";
import { ago, milliseconds, sentence } from "./words.js";

/** Up to so many nodes all networks are shown at once, and round trips stand in the cells. */
const FEW = 12;
const SIGNS = { down: "×", "one-way": "→", degraded: "~", unknown: "·" };

/** The networks that somebody tells of, in the node's order. */
export function networksOf(picture) {
  const told = new Set(Object.values(picture.links).flatMap((peers) => Object.values(peers).flatMap((links) => Object.keys(links))));
  const known = (picture.about.networks ?? []).filter((name) => told.has(name));
  return [...known, ...[...told].filter((name) => !known.includes(name)).sort()];
}

/** The median round trip on a network in ms; undefined while none was measured. */
export function typical(links, network) {
  const found = Object.values(links).flatMap((peers) => Object.values(peers))
    .map((one) => one[network]?.round_trip_ms).filter((ms) => ms !== undefined).sort((left, right) => left - right);
  return found[Math.floor(found.length / 2)];
}

/** How a link is coloured: its state, or from `heat-0`, as good as any, to `heat-3`. */
export function heat(link, usual) {
  if (!link) return "none";
  if (link.state !== "up") return link.state;
  const slow = usual > 0 && link.round_trip_ms !== undefined ? link.round_trip_ms / usual : 1;
  const level = Math.max(slow < 2 ? 0 : slow < 5 ? 1 : slow < 20 ? 2 : 3, link.loss_percent < 1 ? 0 : link.loss_percent < 5 ? 1 : link.loss_percent < 20 ? 2 : 3);
  // A tenth of a millisecond more is nothing, however many times it is the usual.
  return `heat-${link.round_trip_ms < 1 && link.loss_percent < 1 ? 0 : level}`;
}

/** A link in words. */
export function sentenceOf(from, to, network, link, now) {
  if (!link) return `${from} does not tell how it hears ${to} on ${network}.`;
  const parts = [`${from} and ${to} on ${network}: ${link.state}`];
  if (link.detail) parts.push(link.detail);
  if (link.state !== "unknown") parts.push(`since ${ago(link.since_unix_ms, now)}`.replace("since just now", "just now"));
  parts.push(`round trip ${milliseconds(link.round_trip_ms)}`, `jitter ${milliseconds(link.jitter_ms ?? 0)}`, `loss ${link.loss_percent} %`);
  return `${parts.join("; ")}.`;
}

/** Where an arrow key leads in a grid of `size` rows and columns; the diagonal is stepped over. */
export function moved(row, column, key, size) {
  const last = size - 1;
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  if (key === "Home") return [row, row === 0 ? 1 : 0];
  if (key === "End") return [row, row === last ? last - 1 : last];
  if (!steps[key]) return null;
  let [nextRow, nextColumn] = [row + steps[key][0], column + steps[key][1]];
  if (nextRow === nextColumn) [nextRow, nextColumn] = [nextRow + steps[key][0], nextColumn + steps[key][1]];
  const isInside = nextRow >= 0 && nextRow < size && nextColumn >= 0 && nextColumn < size;
  return isInside ? [nextRow, nextColumn] : null;
}

/** The whole view; `look(cell)` notes what is looked at, `choose(network)` what is shown of many. */
export function links(state, now, look, choose) {
  const { picture } = state;
  const nodes = ordered(picture.nodes).filter((node) => !["left", "eliminated"].includes(node.state)).map((node) => node.name);
  const networks = networksOf(picture);
  if (nodes.length < 2 || networks.length === 0) {
    return [h("p", { class: "card quiet" }, nodes.length < 2 ? "There are no links: this node is alone." : "No node has told of its links yet.")];
  }
  const isFew = nodes.length <= FEW;
  const shown = isFew ? networks : [networks.includes(state.network) ? state.network : networks[0]];
  const cell = state.cell;
  const told = cell && nodes.includes(cell.from) && nodes.includes(cell.to)
    ? sentenceOf(cell.from, cell.to, cell.network, picture.links[cell.from]?.[cell.to]?.[cell.network], now)
    : "Point at a cell, or go through them with the arrow keys. A row hears, a column is heard.";
  return [
    isFew ? null : h("div", { class: "segments", role: "group", "aria-label": "Network" }, networks.map((name) =>
      h("button", { key: name, type: "button", "aria-pressed": String(name === shown[0]), onclick: () => choose(name) }, name))),
    h("p", { class: "card told", id: "told" }, told),
    h("div", { class: "grids" }, shown.map((network) => grid(network, nodes, state, now, look, isFew))),
    key(),
  ];
}

function grid(network, nodes, state, now, look, isFew) {
  const { picture } = state;
  const usual = typical(picture.links, network);
  const current = state.cell?.network === network ? state.cell : null;
  const isKnown = current && nodes.includes(current.from) && nodes.includes(current.to);
  const focusable = isKnown ? current : { from: nodes[0], to: nodes[1] };
  const onkeydown = (event) => {
    const { from, to } = event.target.dataset;
    if (!from) return;
    const next = moved(nodes.indexOf(from), nodes.indexOf(to), event.key, nodes.length);
    if (!next) return;
    event.preventDefault();
    look({ network, from: nodes[next[0]], to: nodes[next[1]] });
    event.currentTarget.querySelector(`[data-from="${nodes[next[0]]}"][data-to="${nodes[next[1]]}"]`)?.focus();
  };
  const onlook = (event) => {
    const { from, to } = event.target.closest("[data-from]")?.dataset ?? {};
    if (from) look({ network, from, to });
  };
  return h("section", { key: network, class: "card", "aria-labelledby": `network-${network}` },
    h("h2", { id: `network-${network}` }, network, usual === undefined ? null : h("span", { class: "quiet" }, `  usually ${milliseconds(usual)}`)),
    h("div", { class: "scroll" },
      h("table", { class: `matrix ${isFew ? "few" : "many"}`, role: "grid", "aria-labelledby": `network-${network}`, "aria-describedby": "told", onkeydown, onfocusin: onlook, onpointerover: onlook },
        h("thead", null, h("tr", null, h("td", null), nodes.map((name) => h("th", { key: name, scope: "col" }, h("span", null, name))))),
        h("tbody", null, nodes.map((from) => row(from, nodes, network, picture.links[from], usual, focusable, isFew))))));
}

function row(from, nodes, network, peers, usual, focusable, isFew) {
  const focused = focusable.from === from ? focusable.to : null;
  return h("tr", { key: from, memo: [peers, usual, focused, nodes.join()] },
    h("th", { scope: "row" }, from),
    nodes.map((to) => {
      if (from === to) return h("td", { key: to, class: "self", "aria-hidden": "true" });
      const link = peers?.[to]?.[network];
      const word = link ? `${link.state}, ${milliseconds(link.round_trip_ms)}, loss ${link.loss_percent} %` : "not told";
      return h("td", {
        key: to, role: "gridcell", tabindex: focused === to ? "0" : "-1", class: `cell ${heat(link, usual)}`, "data-from": from, "data-to": to,
        "data-state": link?.state ?? "none", "aria-label": `${from} to ${to}: ${word}`,
      }, isFew ? inside(link) : SIGNS[link?.state] ?? "");
    }));
}

function inside(link) {
  if (!link) return "";
  if (SIGNS[link.state]) return SIGNS[link.state];
  if (link.round_trip_ms === undefined) return "";
  return link.round_trip_ms.toFixed(link.round_trip_ms < 10 ? 2 : 0);
}

function key() {
  const marks = [["heat-0", "as usual"], ["heat-1", "slower"], ["heat-2", "slow or lossy"], ["heat-3", "hardly usable"],
    ["degraded", "degraded"], ["one-way", "one way only"], ["down", "down"], ["none", "not told"]];
  return h("p", { class: "legend quiet" }, marks.map(([name, words]) =>
    h("span", { key: name, class: "mark" }, h("span", { class: `swatch cell ${name}` }, SIGNS[name] ?? ""), sentence(words))),
  "Figures are round trips in ms.");
}
