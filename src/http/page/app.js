// The page: which view the address means.
//
//     #/                    consumers and exports; ?consumer=&status=&exportType=&dataset= filter the exports
//     #/jobs/{id}           one export

import { countDown, watchConnection } from "./banner.js";
import { tick } from "./figures.js";
import { jobView } from "./job.js";
import { watchKey } from "./key.js";
import { overview } from "./overview.js";
import { show } from "./pulse.js";
import { askForExport } from "./start.js";

const ID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

const content = document.getElementById("content");

function viewOf(hash) {
  const [path, query] = hash.replace(/^#/, "").split("?");
  const job = /^\/jobs\/([^/]+)$/.exec(path);
  if (job === null) return overview(new URLSearchParams(query ?? ""));
  // What is no id must not become another call's path; nothing has this one.
  const id = ID.test(job[1]) ? job[1] : "00000000-0000-0000-0000-000000000000";
  return { ...jobView(id, (made) => (location.hash = `#/jobs/${made}`)), title: "Export – cdc-export" };
}

let first = true;

function route() {
  for (const opened of document.querySelectorAll("dialog")) opened.close();
  const view = viewOf(location.hash);
  document.title = view.title;
  // Where a filter has changed the view, it keeps the focus.
  const focused = document.activeElement?.id;
  content.replaceChildren(view.node);
  if (!first) {
    const same = focused?.startsWith("filter-") ? document.getElementById(focused) : null;
    if (same) same.focus();
    else {
      view.heading.tabIndex = -1;
      if (view.heading.tagName === "H1") scrollTo(0, 0);
      view.heading.focus();
    }
  }
  first = false;
  show(view.beat);
}

watchConnection();
watchKey();
document.getElementById("new-export").addEventListener("click", () => askForExport(() => {}));
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
