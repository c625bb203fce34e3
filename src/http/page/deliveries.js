// Events that a webhook has not taken and is not tried with any more: why, and a button that tries again.

import { acting, complaints } from "./actions.js";
import { Problem, call, get } from "./api.js";
import { el, keyed, row, show, table, text } from "./dom.js";
import { when } from "./figures.js";

const DELIVERY_SECONDS = 30;
// An operator's key is needed, or an operator's file with a webhook and a restart.
const NONE_SECONDS = 300;
const SHOWN = 20;

const COLUMNS = [["Webhook", "key"], ["Event"], ["Ended"], ["Last try"], ["Tell it again", "does"]];

const keyOf = ({ deliveryId }) => deliveryId;

// Nothing is to be seen of it where all was taken.
export function deliveriesSection() {
  const list = table("Events that were not taken", COLUMNS);
  const heading = el("h2", { id: "deliveries-heading", tabindex: "-1" }, "Events that were not taken");
  const node = el("section", { "aria-labelledby": heading.id, hidden: true }, el("div", { class: "heading" }, heading), list.node);

  async function refresh(signal) {
    const { items } = await get("/deliveries", { status: "dead", limit: SHOWN }, signal).catch((error) => {
      // A key without the scope for it.
      if (error instanceof Problem && error.status === 403) return { items: [] };
      throw error;
    });
    keyed(list.body, items, keyOf, deliveryRow);
    show(node, items.length > 0);
    return items.length > 0 ? DELIVERY_SECONDS : NONE_SECONDS;
  }
  return { node, refresh };
}

function deliveryRow({ deliveryId, endpoint, event, jobId }) {
  const ended = when();
  const [error, note] = [el("span", {}), el("span", { class: "meaning", hidden: true }, "It is told within seconds.")];
  const { node: complaint, complain } = complaints();
  const again = acting("Redeliver", `${event} to ${endpoint}`, complain, async () => {
    await call("POST", `/deliveries/${encodeURIComponent(deliveryId)}/redeliver`);
    show(note, true);
    return `${endpoint} is told again`;
  });
  const link = el("a", { href: `#/jobs/${jobId}` }, event);
  const cells = [endpoint, link, ended, error, el("div", { class: "actions" }, el("div", { class: "buttons" }, again), note, complaint)];
  const update = (of) => {
    ended.at(of.createdAt);
    text(error, of.lastError ?? "");
  };
  return { node: row(COLUMNS, cells), update };
}
