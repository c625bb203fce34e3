// The page: which view the address means.
//
//     #/                    what runs, what failed, and all consumers
//     #/exports             all exports; ?consumer=&status=&exportType=&dataset= filter them
//     #/jobs/{id}           one job, of one dataset or several
//     #/consumers/{id}      one consumer
//     #/datasets            what may be exported
//     #/datasets/{name}     one dataset

import { countDown, watchConnection } from "./banner.js";
import { consumerView } from "./consumer.js";
import { datasetView } from "./dataset.js";
import { datasetsView } from "./datasets.js";
import { set } from "./dom.js";
import { exportsView } from "./exports.js";
import { tick } from "./figures.js";
import { jobView } from "./job.js";
import { watchKey } from "./key.js";
import { overview } from "./overview.js";
import { show } from "./pulse.js";
import { askForExport } from "./start.js";

const ID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

const content = document.getElementById("content");

function toJob(id) {
  location.hash = `#/jobs/${id}`;
}

function viewOf(hash) {
  const [path, query] = hash.replace(/^#/, "").split("?");
  const [, kind, name] = /^\/([a-z]*)(?:\/([^/]+))?$/.exec(path) ?? [null, "", undefined];
  // What is no id must not become another call's path; nothing has this one.
  const id = ID.test(name) ? name : "00000000-0000-0000-0000-000000000000";
  if (kind === "jobs" && name !== undefined) {
    return { ...jobView(id, toJob), title: "Export – cdc-export", name: "job", under: "exports" };
  }
  if (kind === "consumers" && name !== undefined) return consumerView(decoded(name));
  if (kind === "datasets") return name === undefined ? datasetsView() : datasetView(decoded(name));
  // A filter is one of the exports, whatever it stands behind.
  if (kind === "exports" || query) return exportsView(new URLSearchParams(query ?? ""));
  return overview();
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

let view = null;

function route() {
  for (const opened of document.querySelectorAll("dialog")) opened.close();
  const isFirst = view === null;
  view = viewOf(location.hash);
  document.title = view.title;
  for (const link of document.querySelectorAll("nav a")) set(link, "aria-current", link.dataset.view === (view.under ?? view.name) && "page");
  // Where a filter has changed the view, it keeps the focus.
  const focused = document.activeElement?.id;
  content.replaceChildren(view.node);
  if (!isFirst) {
    const same = focused?.startsWith("filter-") ? document.getElementById(focused) : null;
    if (same) same.focus();
    else {
      view.heading.tabIndex = -1;
      scrollTo(0, 0);
      view.heading.focus();
    }
  }
  show(view.beat);
}

watchConnection();
watchKey();
// Where no list shows the new export, its own page does.
document.getElementById("new-export").addEventListener("click", () =>
  askForExport((id) => ["overview", "exports"].includes(view.name) || toJob(id)),
);
// The address is the view's: an anchor can't be used to skip.
document.querySelector("[data-skip]").addEventListener("click", (event) => {
  event.preventDefault();
  content.focus();
});
addEventListener("hashchange", route);
setInterval(() => {
  if (document.hidden) return;
  countDown();
  tick();
}, 1000);
route();
