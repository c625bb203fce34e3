// One dataset: its table and columns, who exports it and how they stand, and its exports.

import { aside, untold } from "./aside.js";
import { Problem, get } from "./api.js";
import { activity } from "./chart.js";
import { allLanes, laneTable, lanesAgain } from "./consumers.js";
import { el, once, show, text } from "./dom.js";
import { bytes, count } from "./figures.js";
import { jobsSection } from "./jobs.js";
import { DATASET_SECONDS, OPEN_SECONDS, QUIET_SECONDS } from "./pulse.js";
import { consumerPath, tracking } from "./words.js";

export function datasetView(name) {
  const heading = el("h1", {}, name);
  const facts = el("dl", {});
  const { node: unknown, complain } = untold("It");
  const columns = el("div", {});
  const list = laneTable("Consumer");
  const empty = el("p", { class: "empty", hidden: true }, "Nobody has exported it yet.");
  const beyond = el("p", { class: "hint", hidden: true }, "Only the first thousand by name are looked at.");
  const jobs = jobsSection({ dataset: name });
  const day = activity("consumers", { dataset: name });
  const node = el(
    "div",
    {},
    el("div", {}, el("p", {}, el("a", { href: "#/datasets" }, "← Datasets")), heading),
    el("section", { "aria-labelledby": "lanes-heading" }, el("h2", { id: "lanes-heading" }, "Consumers"), unknown, list.nodes, empty, beyond),
    el("section", { "aria-label": "About it" }, facts),
    el("section", { "aria-labelledby": "columns-heading", hidden: true }, el("h2", { id: "columns-heading" }, "Columns"), columns),
    day.node,
    jobs.node,
  );

  let known = null;
  // The lane for which most of the change log is kept.
  let keeper = null;

  function draw() {
    if (known === null) return;
    show(columns.parentElement, true);
    once(columns, JSON.stringify(known), () => columnsOf(known));
    once(facts, JSON.stringify([known, keeper?.consumerId, keeper?.logBytes]), () => factsOf(known, keeper));
  }

  async function lookAtIt(signal) {
    try {
      known = await get(`/datasets/${encodeURIComponent(name)}`, {}, signal);
      draw();
    } catch (error) {
      // The address has a name that is none.
      if (!(error instanceof Problem) || error.status !== 404) throw error;
      complain(error);
    }
    return DATASET_SECONDS;
  }
  async function lookAtLanes(signal) {
    const { items, isAll, pages } = await allLanes(signal);
    const its = items.filter(({ dataset }) => dataset === name);
    keeper = its.filter(({ logBytes }) => logBytes !== null).sort((one, other) => other.logBytes - one.logBytes)[0] ?? null;
    draw();
    list.update(its);
    show(empty, its.length === 0 && isAll);
    show(beyond, !isAll);
    return lanesAgain(items, pages);
  }
  const lanes = aside(lookAtLanes, complain);
  const looks = [aside(lookAtIt, complain), lanes, day];

  async function beat(signal) {
    const { moves, ended } = await jobs.refresh(signal);
    if (ended) for (const look of [lanes, day]) look.soon();
    for (const look of looks) look.beat(signal);
    return moves || lanes.isSoon() ? OPEN_SECONDS : QUIET_SECONDS;
  }
  return { node, heading, beat, title: `${name} – cdc-export`, name: "datasets" };
}

function factsOf(of, keeper) {
  const says = tracking(of);
  const facts = [
    ["Table", of.table],
    ["Changes", [el("span", { class: `badge ${says.weight}` }, says.label), ` ${says.meaning}`]],
    ["Key", of.key === null ? null : of.key.join(", ")],
    ["Rows, about", of.rows === null ? null : count(of.rows)],
    ["Size", of.rows === null && of.bytes === 0 ? "not known before Postgres analyzes the table" : bytes(of.bytes)],
    ["Change log", keeper && [`about ${bytes(keeper.logBytes)} are kept for `, el("a", { href: consumerPath(keeper.consumerId) }, keeper.consumerId), `, of ${bytes(keeper.logBytesMax)} at most`]],
  ];
  return facts.filter(([, value]) => value !== null).map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value)));
}

function columnsOf(of) {
  if (of.columns === null) return el("p", {}, "The table doesn't fit the dataset file.");
  const roles = (column) => [
    of.key?.includes(column) && "key",
    of.updatedAt === column && "when it was changed",
    of.createdAt === column && "when it was made",
    of.deleted === column && "whether it is deleted",
  ].filter(Boolean).join(", ");
  const line = ({ name, type, rename, mask }) => {
    const more = [roles(name), rename && `in files ${rename}`, mask && `masked by ${mask}`].filter(Boolean).join(", ");
    return el("li", {}, el("code", {}, name), ` ${type}`, more && el("span", { class: "quiet" }, ` – ${more}`));
  };
  return el("ul", { class: "listed fields", "aria-label": "Columns" }, of.columns.map(line));
}
