// Jobs, newest first, as a filter has them: those that are open move, the others stay as they ended.

import { Problem, get } from "./api.js";
import { el, keyed, show, table, text } from "./dom.js";
import { columns, jobRow, keyOf, tellEnds } from "./jobrow.js";
import { paged } from "./pages.js";
import { wake } from "./pulse.js";
import { healedByFull, isOpen, withHelp } from "./words.js";

const MOST = 200;
const CHOICES = {
  status: ["pending", "processing", "completed", "skipped", "failed", "cancelled"],
  exportType: ["full", "incremental", "delta"],
};

// `filter` is what the address says, `onFilter` writes another one into it; without it the exports are one consumer's, or one dataset's.
export function jobsSection(filter, onFilter = null) {
  const shown = columns(onFilter === null && filter.consumer !== undefined);
  const list = table("Exports, newest first", shown);
  const pages = paged("/exports", 25, keyOf);
  const more = el("button", { type: "button", hidden: true, onclick: () => (pages.more(), wake()) }, "Show older exports");
  const empty = el("p", { class: "empty", hidden: true });
  const filters = onFilter && filterForm(filter, onFilter);
  const heading = el("h2", { id: "jobs-heading" }, "Exports");
  const node = el(
    "section",
    { "aria-labelledby": "jobs-heading" },
    el("div", { class: "heading" }, heading, filters?.node),
    list.node,
    empty,
    more,
  );
  let seen = null;

  async function refresh(signal) {
    let items;
    try {
      items = await pages.read(filter, signal);
      // What followed one that failed may be no export that the filter is for.
      const { status, exportType, ...whose } = filter;
      const isMore = (status || exportType) && items.some(healedByFull);
      items = withHelp(items, isMore ? (await get("/exports", { ...whose, limit: MOST }, signal)).items : items);
    } catch (error) {
      // The address has a filter that is none.
      if (!(error instanceof Problem) || error.status !== 400) throw error;
      show(list.node, false);
      show(empty, true);
      text(empty, error.message);
      return { moves: false, ended: false };
    }
    keyed(list.body, items, keyOf, (job) => jobRow(shown, job));
    show(list.node, items.length > 0);
    show(more, !pages.ends());
    const filtered = Object.values(filter).some(Boolean);
    show(empty, items.length === 0);
    text(empty, filters && filtered ? "No export is like that. Take a filter away to see others." : "No export yet: New export starts one.");
    const ended = tellEnds(items, seen);
    seen = new Map(items.map((job) => [job.jobId, job.status]));
    return { moves: items.some(isOpen), ended };
  }
  return { node, heading, refresh, datasets: filters?.datasets };
}

// The filters are the address's: what it shows can be sent to somebody.
function filterForm(filter, onFilter) {
  const changed = (name) => (event) => onFilter({ ...filter, [name]: event.target.value.trim() });
  const choice = (name, label, values) => {
    const options = values.map((value) => el("option", { value }, value));
    const select = el("select", { id: `filter-${name}`, onchange: changed(name) }, el("option", { value: "" }, "all"), options);
    // One that isn't known (yet) is shown all the same: it is what is asked for.
    if (filter[name] && !values.includes(filter[name])) select.append(el("option", { value: filter[name] }, filter[name]));
    select.value = filter[name] ?? "";
    return el("label", { for: select.id }, label, select);
  };
  const consumer = el("input", {
    id: "filter-consumer",
    type: "search",
    placeholder: "all",
    value: filter.consumer ?? "",
    spellcheck: "false",
    autocapitalize: "none",
    onchange: changed("consumer"),
  });
  const dataset = choice("dataset", "Dataset", []);
  const node = el(
    "form",
    { class: "filters", role: "search", "aria-label": "Filter the exports", onsubmit: (event) => event.preventDefault() },
    el("label", { for: consumer.id }, "Consumer", consumer),
    choice("status", "Status", CHOICES.status),
    choice("exportType", "Type", CHOICES.exportType),
    dataset,
    Object.values(filter).some(Boolean) && el("a", { href: "#/exports", class: "button" }, "All exports"),
  );
  const datasets = (names) => {
    const select = dataset.querySelector("select");
    const there = new Set(Array.from(select.options, (option) => option.value));
    select.append(...names.filter((name) => !there.has(name)).map((name) => el("option", { value: name }, name)));
  };
  return { node, datasets };
}
