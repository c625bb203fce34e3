// One consumer: where it stands in each dataset, and its exports with the numbers by which they are to be loaded.

import { acting, complaints } from "./actions.js";
import { aside, untold } from "./aside.js";
import { Problem, call, get } from "./api.js";
import { activity } from "./chart.js";
import { laneTable, lanesAgain, withFailures } from "./consumers.js";
import { el, show, text } from "./dom.js";
import { jobsSection } from "./jobs.js";
import { OPEN_SECONDS, QUIET_SECONDS } from "./pulse.js";
import { question } from "./question.js";

export function consumerView(id) {
  const list = laneTable("Dataset");
  const empty = el("p", { class: "empty", hidden: true });
  const unknown = untold("Where it stands");
  const jobs = jobsSection({ consumer: id });
  const day = activity("datasets", { consumer: id });
  const heading = el("h1", {}, id);
  const { node: complaint, complain } = complaints();
  const remove = acting("Remove this consumer…", id, complain, removed, { class: "danger", hidden: true });
  const node = el(
    "div",
    {},
    el("div", {}, el("p", {}, el("a", { href: "#/" }, "← Overview")), heading),
    el(
      "section",
      { "aria-labelledby": "lanes-heading" },
      el("h2", { id: "lanes-heading" }, "Where it stands"),
      el("p", { class: "hint" }, "A position moves when a file is complete, not when it was loaded. Load the files of a dataset in the order of their numbers."),
      unknown.node,
      list.nodes,
      empty,
    ),
    day.node,
    jobs.node,
    el("div", { class: "actions" }, remove, complaint),
  );

  async function removed() {
    const asked = question({
      title: `Remove ${id}?`,
      text: "Its positions in all datasets are forgotten, so its next export is a first one. Files and exports stay until retention removes them.",
      yes: "Remove it",
      no: "Keep it",
      weight: "danger",
    });
    if (!(await asked.answer)) return null;
    await call("DELETE", `/consumers/${encodeURIComponent(id)}`);
    location.hash = "#/";
    return `removed: ${id}`;
  }

  async function lookAtLanes(signal) {
    let items = [];
    let none = "Nobody has asked for an export for this consumer, or this key is not for it.";
    try {
      ({ items } = await get("/consumers", { consumer: id, limit: 200 }, signal));
      items = await withFailures(items, signal);
    } catch (error) {
      // The address has a name that is none.
      if (!(error instanceof Problem) || error.status !== 400) throw error;
      none = error.message;
    }
    list.update(items);
    show(empty, items.length === 0);
    show(remove, items.length > 0);
    text(empty, none);
    return lanesAgain(items);
  }
  const lanes = aside(lookAtLanes, unknown.complain);

  async function beat(signal) {
    const { moves, ended } = await jobs.refresh(signal);
    for (const look of [lanes, day]) {
      if (ended) look.soon();
      look.beat(signal);
    }
    return moves || lanes.isSoon() ? OPEN_SECONDS : QUIET_SECONDS;
  }
  return { node, heading, beat, title: `${id} – cdc-export`, name: "consumer", under: "overview" };
}
