// What can be done from the page: each is asked for once more, done through the public API, and told how it went.
//
// A session that may not do it is not offered it, and the node refuses it whatever is offered here.

import { h, render } from "./dom.js";
import { ask } from "./session.js";
import { bytes, milliseconds } from "./words.js";

const KINDS = {
  checkpoint: (name) => ({
    title: `Checkpoint ${name} now?`,
    text: `${name} is held still for a moment while its memory is copied to other nodes.`,
    confirm: "Take the checkpoint",
    doing: `Taking a checkpoint of ${name}`,
    run: () => ask("POST", `/v1/containers/${encodeURIComponent(name)}/checkpoints`),
    done: (made) => `Checkpoint ${made.number} of ${name} is committed: ${bytes(made.bytes)}, held still for ${milliseconds(made.frozen_ms)}, ${made.copies.length} of ${made.copies_wanted} copies`,
  }),
  drain: (name) => ({
    title: `Drain ${name}?`,
    text: `${name} hands its containers over to other members, each by a last checkpoint, and takes on nothing more until this is taken back. It stays a member.`,
    confirm: `Drain ${name}`,
    doing: `Draining ${name}`,
    run: () => ask("POST", `/v1/nodes/${encodeURIComponent(name)}/drain`, { undo: false }),
    done: () => `${name} is drained`,
  }),
  undrain: (name) => ({
    title: `Let ${name} take containers again?`,
    text: `${name} may be chosen for containers again; none is moved back by this.`,
    confirm: "Take it back",
    doing: `Taking back the drain of ${name}`,
    run: () => ask("POST", `/v1/nodes/${encodeURIComponent(name)}/drain`, { undo: true }),
    done: () => `${name} takes containers again`,
  }),
  move: (name) => ({
    title: `Move ${name}?`,
    text: `${name} goes on where it is on the node that you choose, after a last checkpoint.`,
    confirm: `Move ${name}`,
    chooses: "node",
    doing: `Moving ${name}`,
    run: (node) => ask("POST", `/v1/containers/${encodeURIComponent(name)}/move`, { node }),
    done: () => `${name} was moved`,
  }),
};

/** How long a message about success stays, in ms; one about failure stays until it is closed. */
const STAYS = 8000;

/** Makes the function that asks for actions; messages go to the store. */
export function createActions(store, dialog) {
  let number = 0;
  const tell = (changes, id = (number += 1)) => {
    const others = store.get().messages.filter((one) => one.id !== id);
    store.set({ messages: changes ? [...others, { id, ...changes }].slice(-4) : others });
    return id;
  };
  const carryOut = async (action, chosen) => {
    const id = tell({ tone: "busy", text: `${action.doing}…` });
    try {
      tell({ tone: "good", text: action.done(await action.run(chosen)) }, id);
      setTimeout(() => tell(null, id), STAYS);
    } catch (error) {
      tell({ tone: "bad", text: `${action.doing} failed: ${error.message}` }, id);
    }
  };
  return {
    ask(kind, name) {
      const action = KINDS[kind](name);
      const targets = Object.values(store.get().picture.nodes)
        .filter((node) => node.state === "member" && !node.containers.includes(name)).map((node) => node.name);
      const submit = (event) => {
        event.preventDefault();
        const chosen = new FormData(event.target).get("node");
        dialog.close();
        carryOut(action, chosen);
      };
      render(dialog, h("form", { key: `${kind} ${name}`, onsubmit: submit },
        h("h2", { id: "dialog-title" }, action.title),
        h("p", { id: "dialog-text" }, action.text),
        action.chooses ? h("p", null, h("label", { for: "node" }, "To "), h("select", { id: "node", name: "node" }, targets.map((one) => h("option", { key: one, value: one }, one)))) : null,
        h("div", { class: "actions end" },
          h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"),
          h("button", { type: "submit", class: "primary" }, action.confirm))));
      dialog.showModal();
    },
    dismiss: (id) => tell(null, id),
  };
}

/** The messages, at the lower edge. */
export function messages(state, dismiss) {
  return h("div", { class: "messages", role: "status", "aria-live": "polite" }, state.messages.map((one) =>
    h("p", { key: one.id, class: `message ${one.tone}` }, h("span", { class: `dot ${one.tone}`, "aria-hidden": "true" }), h("span", { class: "what" }, one.text),
      one.tone === "busy" ? null : h("button", { type: "button", class: "link", "aria-label": "Close this message", onclick: () => dismiss(one.id) }, "×"))));
}
