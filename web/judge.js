// What is wrong, worst first, from the picture alone. Pure: it repeats what the node concluded and concludes nothing itself.

import { count, listed, sentence } from "./words.js";

const LEVELS = ["bad", "warn", "note"];

const GRAVE = ["host-dead", "process-crashed", "network-down", "split", "node-isolated"];
const GRAVE_WARNINGS = [/^there is no majority/, /^etcd does not answer/, / is lost: /, / failed: /, /catalog on this node is closed/];

/** Everything that needs attention: `{level, text, view, name}`, the worst first. */
export function problems(picture) {
  const found = [];
  const add = (level, text, view, name) => {
    if (!found.some((known) => known.text === text)) found.push({ level, text, view, name });
  };
  if (picture.about.trouble) add("bad", sentence(picture.about.trouble), "catalog");
  const verdicts = picture.verdicts.list ?? [];
  const names = [...Object.keys(picture.nodes), ...Object.keys(picture.containers)];
  for (const verdict of verdicts) {
    // What is over stands here only while its nodes are not back.
    const isGrave = GRAVE.includes(verdict.class);
    const view = verdict.network ? "links" : "nodes";
    add(isGrave ? "bad" : "warn", sentence(verdict.sentence, names), view, verdict.nodes[0]);
  }
  for (const warning of picture.standing.warnings ?? []) {
    const container = Object.keys(picture.containers).find((name) => warning.startsWith(`${name} `) || warning.includes(` ${name} `));
    const isGrave = GRAVE_WARNINGS.some((pattern) => pattern.test(warning));
    add(isGrave ? "bad" : "warn", sentence(warning, names), container ? "containers" : "nodes", container);
  }
  for (const container of Object.values(picture.containers)) {
    const isTold = found.some((one) => one.name === container.name);
    if (isTold || container.state !== "running" || !container.latest || isProtected(container, picture.nodes)) continue;
    const there = holders(container, picture.nodes).length;
    add("warn", `${container.name} has ${there} of ${container.copies_wanted} copies on other nodes`, "containers", container.name);
  }
  for (const node of Object.values(picture.nodes)) {
    const isTold = verdicts.some((verdict) => verdict.nodes.includes(node.name));
    if (isTold) continue;
    if (node.state === "suspected") add("warn", `${node.name} is suspected by ${picture.about.node}`, "nodes", node.name);
    if (node.state === "removed") add("warn", `${node.name} was removed and is not back`, "nodes", node.name);
    if (node.state === "eliminated") {
      add("warn", `${node.name} was not admitted: ${node.probation?.eliminated?.measured ?? "its probation failed"}`, "nodes", node.name);
    }
  }
  const survives = picture.standing.survives;
  if (survives && survives.nodes === 0 && (picture.standing.members ?? []).length > 1) {
    add("warn", "No failure of a node would be survived now", "catalog");
  }
  return found.sort((left, right) => LEVELS.indexOf(left.level) - LEVELS.indexOf(right.level));
}

/** The whole in one word and one sentence: `{tone, title}`. */
export function health(picture, found = problems(picture)) {
  const worst = found[0]?.level;
  if (!worst) return { tone: "good", title: "Everything is well" };
  return { tone: worst, title: `${count(found.length, "thing needs", "things need")} attention` };
}

/** Nodes in the order in which they are shown: members first, then by name. */
export function ordered(nodes) {
  const isOut = (node) => ["removed", "left", "eliminated"].includes(node.state);
  return Object.values(nodes).sort((left, right) => isOut(left) - isOut(right) || left.name.localeCompare(right.name, "en"));
}

/** Who else has copies of a container's newest checkpoint and is there: names. What lies on its own node is lost with it. */
export function holders(container, nodes) {
  const isThere = (name) => ["member", "suspected", "draining"].includes(nodes[name]?.state);
  return (container.latest?.copies ?? []).map((copy) => copy.node).filter((name) => isThere(name) && name !== container.node).sort();
}

/** Whether as many nodes have copies as are wanted. */
export function isProtected(container, nodes) {
  return holders(container, nodes).length >= container.copies_wanted;
}

/** Where a container and its copies are, in one sentence. */
export function whereabouts(container, nodes) {
  const names = holders(container, nodes);
  if (!container.latest) return `on ${container.node}; no checkpoint yet`;
  if (names.length === 0) return `on ${container.node}; no copy of its last checkpoint is there`;
  return `on ${container.node}; ${names.length === 1 ? "a copy" : "copies"} on ${listed(names)}`;
}
