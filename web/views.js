// The time line of views: each agreed list of members, what it changed, who proposed it and why.

import { h } from "./dom.js";
import { clock, sentence } from "./words.js";

const TONES = { removed: "bad", left: "warn", admitted: "good", founded: "good", replaced: "busy", grantor: "idle", no_grantor: "idle" };
const WORDS = { no_grantor: "grantor", grantor: "grantor" };

/** The whole view. */
export function views(state, now) {
  const all = Object.values(state.picture.views).sort((left, right) => right.id - left.id);
  if (all.length === 0) return [h("p", { class: "card quiet" }, "No view is known here yet.")];
  const before = new Map(all.map((view, index) => [view.id, all[index + 1]]));
  return [h("ol", { class: "timeline" }, all.map((view) => entry(view, before.get(view.id), now)))];
}

function entry(view, before, now) {
  const had = new Set((before?.members ?? []).map((member) => member.node));
  const has = new Set(view.members.map((member) => member.node));
  const gone = before ? [...had].filter((name) => !has.has(name)) : [];
  return h("li", { key: view.id, class: `card ${TONES[view.change] ?? "idle"}` },
    h("div", { class: "timeline-head" },
      h("span", { class: "number" }, `View ${view.id}`),
      h("span", { class: `pill ${TONES[view.change] ?? "idle"}` }, WORDS[view.change] ?? view.change),
      h("time", { class: "quiet", datetime: new Date(view.proposed_unix_ms).toISOString() }, clock(view.proposed_unix_ms, now))),
    h("p", null, sentence(view.reason, namesIn(view))),
    h("p", { class: "members" },
      [...view.members].sort((left, right) => left.node.localeCompare(right.node, "en")).map((member) => h("span", { key: member.node, class: `tag ${before && !had.has(member.node) ? "plus" : ""}` },
        before && !had.has(member.node) ? "+ " : "", member.node,
        h("span", { class: "quiet", title: "incarnation: the number of its start" }, ` ${member.incarnation}`))),
      gone.map((name) => h("span", { key: `-${name}`, class: "tag minus" }, `− ${name}`))),
    h("p", { class: "quiet small" }, `proposed by ${view.proposer}; leases by ${[...view.grantors].sort().join(", ")}`));
}

/** A view in one line, for the overview. */
export function viewLine(view, now) {
  return h("li", { key: view.id },
    h("span", { class: `dot ${TONES[view.change] ?? "idle"}`, "aria-hidden": "true" }),
    h("span", { class: "number" }, String(view.id)),
    h("span", { class: "what" }, sentence(view.reason, namesIn(view))),
    h("time", { class: "quiet", datetime: new Date(view.proposed_unix_ms).toISOString() }, clock(view.proposed_unix_ms, now)));
}

function namesIn(view) {
  return [...view.members, ...view.nodes].map((one) => one.node);
}
