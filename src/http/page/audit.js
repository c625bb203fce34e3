// The audit log: who changed or downloaded something, and who was refused. A click on a key, a consumer or a dataset shows its rows alone.

import { get } from "./api.js";
import { aside } from "./aside.js";
import { el, once, row, show, table, text } from "./dom.js";
import { count, when } from "./figures.js";
import { QUIET_SECONDS } from "./pulse.js";
import { consumerPath } from "./words.js";

const AUDIT_SECONDS = 15;
const SHOWN = 100;
const FILTERS = ["key", "consumer", "dataset", "action"];

const COLUMNS = [["Time", "key"], ["Key"], ["From"], ["Action"], ["Consumer"], ["Dataset"], ["Export"], ["Outcome"], ["Times", "number"]];

export function auditView(query) {
  const filter = Object.fromEntries(FILTERS.map((name) => [name, query.get(name) ?? ""]));
  const chosen = FILTERS.filter((name) => filter[name] !== "").map((name) => `${name} ${filter[name]}`);
  const list = table("Requests, newest first", COLUMNS);
  const heading = el("h1", {}, "Audit log");
  const notice = el("p", { class: "notice", hidden: true });
  const empty = el("p", { class: "hint", hidden: true }, "There is no such request.");
  const all = el("p", { class: "hint", hidden: chosen.length === 0 }, `Only ${chosen.join(", ")}. `, el("a", { href: "#/audit" }, "Show all"));
  const hint = el("p", { class: "hint" }, `The newest ${SHOWN}. `, el("code", {}, "GET /audit"), " lists more.");
  const node = el("div", {}, heading, el("section", { "aria-label": "Audit log" }, hint, all, notice, empty, list.node));
  const look = aside(
    async (signal) => {
      const { items } = await get("/audit", { ...filter, limit: SHOWN }, signal);
      once(list.body, JSON.stringify(items), () => items.map(auditRow));
      show(list.node, items.length > 0);
      show(empty, items.length === 0);
      return AUDIT_SECONDS;
    },
    (error) => {
      show(notice, error !== null);
      text(notice, error === null ? "" : `The audit log can't be shown now: ${error.message}`);
    },
  );
  async function beat(signal) {
    // Whether the service is there shows here too.
    await get("/exports", { limit: 1 }, signal);
    look.beat(signal);
    return QUIET_SECONDS;
  }
  return { node, heading, beat, title: "Audit log – cdc-export", name: "audit" };
}

function auditRow(of) {
  const at = when();
  at.at(of.at);
  const only = (name, value) => (value === null ? "" : el("a", { href: `#/audit?${new URLSearchParams([[name, value]])}`, title: "only these" }, value));
  const consumer = of.consumerId === null ? "" : el("a", { href: consumerPath(of.consumerId), title: "its page" }, of.consumerId);
  const job = of.jobId === null ? "" : el("a", { href: `#/jobs/${of.jobId}` }, of.jobId.slice(0, 8));
  const outcome = el("span", { class: `badge ${of.outcome === "done" ? "good" : "bad"}` }, of.outcome);
  const cells = [at, only("key", of.key), of.remote ?? "", only("action", of.action), consumer, only("dataset", of.dataset), job, outcome, count(of.count)];
  return row(COLUMNS, cells);
}
