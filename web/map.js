// The node map: nodes on an ellipse, lines where links do anything but well, and where containers and their copies are.
//
// Places are computed from the number of nodes and the width alone, so that nothing moves when a state changes. It decides
// nothing. `layout` and `worst` are pure.

import { h } from "./dom.js";
import { holders, ordered } from "./judge.js";
import { tone } from "./words.js";

/** From this many nodes on, they are dots, and good links are not drawn. */
const MANY = 13;
const ORDER = ["down", "one-way", "degraded", "unknown", "up"];

/** Where each of `count` nodes stands: `{x, y}` in a drawing of this size. */
export function layout(count, width, height, margin) {
  if (count === 1) return [{ x: width / 2, y: height / 2 }];
  const [across, down] = [width / 2 - margin.x, height / 2 - margin.y];
  // Two stand side by side; three begin at the top.
  const start = count === 2 ? Math.PI : -Math.PI / 2;
  const angles = Array.from({ length: count }, (_, index) => start + (2 * Math.PI * index) / count);
  const lowest = Math.max(...angles.map(Math.sin));
  // An odd number leaves room at the bottom, which is used.
  const stretch = count === 2 ? 0 : 2 / (1 + lowest);
  return angles.map((angle) => ({
    x: width / 2 + across * Math.cos(angle),
    y: count === 2 ? height / 2 : margin.y + down * (Math.sin(angle) + 1) * stretch,
  }));
}

/** What two nodes do to each other over their best network: the state, or undefined while nobody tells. */
export function worst(links, left, right) {
  const networks = {};
  for (const [from, to] of [[left, right], [right, left]]) {
    for (const [network, link] of Object.entries(links[from]?.[to] ?? {})) {
      const known = networks[network];
      if (known === undefined || ORDER.indexOf(link.state) < ORDER.indexOf(known)) networks[network] = link.state;
    }
  }
  const states = Object.values(networks);
  if (states.length === 0) return undefined;
  const best = states.reduce((one, other) => (ORDER.indexOf(one) > ORDER.indexOf(other) ? one : other));
  // One network of several that fails is worth a look, and no more.
  return best === "up" && states.some((state) => state !== "up") ? "degraded" : best;
}

/** The map; `chosen` is the container whose copies are shown. */
export function nodeMap(picture, width, chosen) {
  const nodes = ordered(picture.nodes).filter((node) => node.state !== "left");
  const isMany = nodes.length >= MANY;
  const isFew = nodes.length <= 6;
  const size = { width: Math.max(280, width), height: isMany ? 400 : nodes.length <= 3 ? 250 : isFew ? 310 : 380 };
  const box = isMany ? { width: 14, height: 14 } : { width: size.width < 480 ? (isFew ? 108 : 92) : isFew ? 146 : 116, height: isFew ? 70 : 52 };
  const margin = { x: box.width / 2 + (size.width < 480 ? 6 : 14), y: box.height / 2 + (isMany ? 20 : 10) };
  const places = layout(nodes.length, size.width, size.height, margin);
  const at = new Map(nodes.map((node, index) => [node.name, places[index]]));
  const container = chosen ? picture.containers[chosen] : undefined;
  const told = nodes.map((node) => `${node.name} is ${stateWord(node)}`).join(", ");
  return h("svg", {
    class: `map ${isMany ? "many" : ""}`, viewBox: `0 0 ${size.width} ${size.height}`, role: "img", "aria-label": `Node map: ${told}`,
  },
    lines(nodes, picture.links, at, isMany),
    container && copies(container, picture.nodes, at),
    nodes.map((node) => shownNode(node, at.get(node.name), box, picture, container, isMany)));
}

function lines(nodes, links, at, isMany) {
  const drawn = [];
  for (const [index, left] of nodes.entries()) {
    for (const right of nodes.slice(index + 1)) {
      if (![left, right].every((node) => ["member", "suspected", "draining"].includes(node.state))) continue;
      const state = worst(links, left.name, right.name);
      if (state === undefined || (isMany && state === "up")) continue;
      const [from, to] = [at.get(left.name), at.get(right.name)];
      drawn.push(h("line", {
        key: `${left.name}/${right.name}`, class: `edge ${tone(state)}`, x1: from.x, y1: from.y, x2: to.x, y2: to.y,
      }));
    }
  }
  return h("g", { key: "lines" }, drawn);
}

/** Bows from a container's node to those with copies. */
function copies(container, nodes, at) {
  const from = at.get(container.node);
  if (!from) return null;
  const bows = holders(container, nodes).map((name) => [name, at.get(name)]).filter(([, to]) => to);
  return h("g", { key: "copies" }, bows.map(([name, to]) => {
    const middle = { x: (from.x + to.x) / 2, y: (from.y + to.y) / 2 };
    const bend = { x: middle.x - (to.y - from.y) * 0.16, y: middle.y + (to.x - from.x) * 0.16 };
    return h("path", { key: name, class: "bow", d: `M${from.x} ${from.y} Q${bend.x} ${bend.y} ${to.x} ${to.y}` });
  }));
}

function shownNode(node, place, box, picture, container, isMany) {
  const shade = isOut(node) ? "idle" : tone(node.state);
  const holds = container && holders(container, picture.nodes).includes(node.name);
  const owns = container?.node === node.name;
  const classes = `node ${shade} ${isOut(node) ? "out" : ""} ${holds ? "holds" : ""} ${owns ? "owns" : ""}`;
  if (isMany) {
    return h("g", { key: node.name, class: classes, transform: `translate(${place.x} ${place.y})` },
      h("title", null, `${node.name}: ${stateWord(node)}`),
      h("circle", { r: node.containers.length ? 8 : 6 }));
  }
  const [left, top] = [-box.width / 2, -box.height / 2];
  return h("g", { key: node.name, class: classes, transform: `translate(${place.x} ${place.y})` },
    h("title", null, `${node.name}: ${stateWord(node)}`),
    h("rect", { class: "face", x: left, y: top, width: box.width, height: box.height, rx: 9 }),
    h("circle", { class: "lamp", cx: left + 15, cy: top + 18, r: 4.5 }),
    h("text", { class: "name", x: left + 27, y: top + 22.5 }, shortened(node.name, letters(box.width - 36, 8.2))),
    box.height > 60 ? h("text", { class: "more", x: left + 12, y: top + 41 }, shortened(isOut(node) ? stateWord(node) : node.containers.join(", "), letters(box.width - 22, 6.6))) : null,
    chips(node, picture, left + 12, top + box.height - 16, box.width - 24));
}

/** A full square for each container that runs here, a hollow one for each whose copy lies here. */
function chips(node, picture, x, y, width) {
  const containers = Object.values(picture.containers).sort((left, right) => left.name.localeCompare(right.name, "en"));
  const marks = [
    ...containers.filter((one) => one.node === node.name && ["running", "starting", "recovering", "stopping"].includes(one.state))
      .map((one) => [`${one.name} ${one.state}`, `chip runs ${tone(one.state)}`]),
    ...containers.filter((one) => holders(one, picture.nodes).includes(node.name)).map((one) => [`a copy of ${one.name}`, "chip copy"]),
  ];
  const room = Math.floor(width / 13);
  const isCrowded = marks.length > room;
  const shown = isCrowded ? marks.slice(0, Math.max(0, room - 2)) : marks;
  return h("g", { key: "chips" },
    shown.map(([title, classes], index) => h("rect", { key: title, class: classes, x: x + index * 13, y, width: 8, height: 8, rx: 2 }, h("title", null, title))),
    isCrowded ? h("text", { key: "more", class: "more", x: x + shown.length * 13, y: y + 8 }, `+${marks.length - shown.length}`) : null,
    marks.length === 0 ? h("text", { key: "state", class: "more", x, y: y + 8 }, isOut(node) ? "" : "nothing yet") : null);
}

function isOut(node) {
  return ["removed", "left", "eliminated"].includes(node.state);
}

/** The state as people say it. */
export function stateWord(node) {
  return node.state === "probation" ? "in probation" : node.state;
}

/** How many letters of about this width there is room for. */
function letters(room, width) {
  return Math.floor(room / width);
}

/** A name that is too long without its middle: numbered names differ at their ends. */
export function shortened(name, max) {
  if (name.length <= max) return name;
  const end = Math.floor((max - 1) / 2);
  return `${name.slice(0, max - 1 - end)}…${name.slice(name.length - end)}`;
}
