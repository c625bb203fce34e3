// All exports, newest first, with the filters that the address has.

import { get } from "./api.js";
import { aside } from "./aside.js";
import { el } from "./dom.js";
import { jobsSection } from "./jobs.js";
import { DATASET_SECONDS, OPEN_SECONDS, QUIET_SECONDS } from "./pulse.js";
import { isDataset } from "./words.js";

const FILTERS = ["consumer", "status", "exportType", "dataset"];

export function exportsView(query) {
  const filter = Object.fromEntries(FILTERS.map((name) => [name, query.get(name) ?? ""]));
  const jobs = jobsSection(filter, (changed) => {
    const set = new URLSearchParams(Object.entries(changed).filter(([, value]) => value !== "")).toString();
    location.hash = set ? `#/exports?${set}` : "#/exports";
  });
  const datasets = aside(async (signal) => {
    jobs.datasets((await get("/datasets", {}, signal)).items.filter(isDataset).map(({ name }) => name));
    return DATASET_SECONDS;
  });
  async function beat(signal) {
    const { moves } = await jobs.refresh(signal);
    datasets.beat(signal);
    return moves ? OPEN_SECONDS : QUIET_SECONDS;
  }
  const heading = el("h1", { class: "unseen" }, "All exports");
  return { node: el("div", {}, heading, jobs.node), heading, beat, title: "Exports – cdc-export", name: "exports" };
}
