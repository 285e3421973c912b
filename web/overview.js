// The first view: what is wrong, what the cluster survives, and where everything is.

import { h } from "./dom.js";
import { health, isProtected, problems } from "./judge.js";
import { nodeMap } from "./map.js";
import { viewLine } from "./views.js";
import { count, sentence } from "./words.js";

/** The whole view. */
export function overview(state, now) {
  const { picture } = state;
  const found = problems(picture);
  return [
    banner(picture, found),
    figures(picture),
    h("div", { class: "columns" },
      h("section", { class: "card grow", "aria-labelledby": "map-title" },
        h("h2", { id: "map-title" }, "Where everything is"),
        nodeMap(picture, mapWidth(state.room, 0.608), null),
        legend()),
      h("div", { class: "stack" },
        h("section", { class: "card", "aria-labelledby": "views-title" },
          h("h2", { id: "views-title" }, "Latest changes of members"),
          h("ol", { class: "lines" }, Object.values(picture.views).sort((left, right) => right.id - left.id).slice(0, 4)
            .map((view) => viewLine(view, now))),
          h("a", { class: "more", href: "#views" }, "All of them")),
        survives(picture))),
  ];
}

function banner(picture, found) {
  const { tone, title } = health(picture, found);
  return h("section", { class: `banner ${tone}`, "aria-labelledby": "health" },
    h("h2", { id: "health" }, h("span", { class: "lamp", "aria-hidden": "true" }), title),
    found.length === 0
      ? h("p", null, summary(picture))
      : h("ul", null, found.slice(0, 8).map((one) =>
        h("li", { key: one.text, class: one.level }, h("a", { href: `#${one.view}` }, one.text)))),
    found.length > 8 ? h("p", { class: "quiet" }, `and ${found.length - 8} more`) : null);
}

/** What there is, while nothing is wrong. */
function summary(picture) {
  const members = (picture.standing.members ?? []).length;
  const running = Object.values(picture.containers).filter((one) => one.state === "running").length;
  const what = running === 0 ? "no container runs" : `${count(running, "container runs", "containers run")}, each with all its copies`;
  return `${count(members, "member")}; ${what}.`;
}

function figures(picture) {
  const nodes = Object.values(picture.nodes);
  const members = picture.standing.members ?? [];
  const containers = Object.values(picture.containers);
  const running = containers.filter((one) => one.state === "running").length;
  const active = containers.filter((one) => one.state !== "stopped").length;
  const protectedOnes = containers.filter((one) => one.state !== "stopped" && isProtected(one, picture.nodes)).length;
  const meant = nodes.filter((node) => ["member", "suspected", "draining", "removed"].includes(node.state)).length;
  const alive = nodes.filter((node) => ["member", "draining"].includes(node.state)).length;
  const survives = picture.standing.survives;
  const figure = (name, value, note, tone) => h("div", { class: `figure ${tone ?? ""}`, key: name },
    h("dt", null, name), h("dd", null, value), h("dd", { class: "quiet" }, note));
  return h("dl", { class: "figures" },
    figure("Members", `${alive}/${meant}`, `view ${picture.standing.view ?? "–"}`, alive < meant ? "warn" : ""),
    figure("Containers", `${running}/${active}`, "running", running < active ? "warn" : ""),
    figure("Protected", `${protectedOnes}/${active}`, "have all their copies", protectedOnes < active ? "warn" : ""),
    figure("Survives", survives ? String(survives.nodes) : "–",
      survives?.nodes === 1 ? "node failing" : "nodes failing", survives?.nodes === 0 && members.length > 1 ? "warn" : ""),
    figure("Catalog", picture.catalog.quorum ? "answers" : "stands still",
      picture.catalog.leader ? `led by ${picture.catalog.leader}` : picture.catalog.engine ?? "", picture.catalog.quorum ? "" : "bad"));
}

function survives(picture) {
  const found = picture.standing.survives;
  return h("section", { class: "card", "aria-labelledby": "survives-title" },
    h("h2", { id: "survives-title" }, "What it survives"),
    h("p", null, found ? `${sentence(found.sentence)}.` : "Not known here yet."),
    found?.domains.length ? h("ul", { class: "plain" }, found.domains.map((domain) =>
      h("li", { key: domain.domain.join("/") },
        h("span", { class: `pill ${domain.survived ? "good" : "warn"}` }, domain.survived ? "survived" : "not survived"),
        ` ${domain.domain.join(" / ")} (${count(domain.hosts.length, "host")})`,
        domain.why ? h("span", { class: "quiet" }, `: ${domain.why}`) : null))) : null);
}

/** The width of a map in a card that has this share of the room where cards stand side by side, and all of it elsewhere. */
export function mapWidth(room, share) {
  return Math.round(room.isWide ? (room.width - 16) * share : room.width) - room.inset;
}

/** What the marks of the map mean. */
export function legend() {
  return h("p", { class: "legend quiet" },
    [["runs", "runs here"], ["copy", "copy of a checkpoint"], ["edge-good", "links well"], ["edge-warn", "on some networks only"], ["edge-bad", "cut"]]
      .map(([name, words]) => h("span", { key: name, class: "mark" }, h("span", { class: `swatch ${name}` }), words)));
}
