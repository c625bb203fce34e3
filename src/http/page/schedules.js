// The exports that the service asks for by itself: when each last ran, when it runs next, and what stands against that.

import { get } from "./api.js";
import { el, keyed, row, set, show, table, text } from "./dom.js";
import { count, now, when } from "./figures.js";
import { REFUSED, STATUS, consumerPath } from "./words.js";

const SCHEDULE_SECONDS = 15;
// A schedule needs a restart to come.
const NONE_SECONDS = 300;

const COLUMNS = [["Schedule", "key"], ["Consumer"], ["Export"], ["When"], ["Last run"], ["Next run"]];

const keyOf = ({ name }) => name;

// Nothing is to be seen of it where there are none.
export function schedulesSection() {
  const list = table("Schedules and when they run", COLUMNS);
  const heading = el("h2", { id: "schedules-heading", tabindex: "-1" }, "Schedules");
  const node = el("section", { "aria-labelledby": heading.id, hidden: true }, el("div", { class: "heading" }, heading), list.node);

  async function refresh(signal) {
    const { items } = await get("/schedules", {}, signal);
    keyed(list.body, items, keyOf, scheduleRow);
    show(node, items.length > 0);
    return items.length > 0 ? SCHEDULE_SECONDS : NONE_SECONDS;
  }
  return { node, heading, refresh };
}

function scheduleRow({ name, consumerId }) {
  const [what, dataset, timing, zone] = ["span", "span", "code", "span"].map((kind) => el(kind, {}));
  const [lastAt, nextAt] = [when(), when()];
  const last = el("a", {});
  const never = el("span", { class: "quiet" }, "not yet");
  const skipped = el("span", { class: "meaning" });
  const due = el("span", {}, "due ");
  const none = el("span", { class: "quiet" }, "not known");
  const refused = el("span", { class: "badge bad" });
  const meaning = el("span", { class: "meaning" });
  zone.className = "meaning";
  dataset.className = "meaning";
  const cells = [
    name,
    el("a", { href: consumerPath(consumerId), title: "its page" }, consumerId),
    el("div", {}, what, dataset),
    el("div", {}, timing, zone),
    el("div", { class: "last" }, last, lastAt, never, skipped),
    el("div", {}, due, nextAt, none, " ", refused, meaning),
  ];
  const update = (of) => {
    text(what, of.exportType);
    text(dataset, of.dataset ?? (of.datasets[0] === "*" ? "all datasets together" : `${of.datasets.join(", ")} together`));
    text(timing, of.every === null ? of.cron : `every ${of.every}`);
    text(zone, of.timezone ?? "");
    const job = of.lastJob;
    show(last, job !== null);
    if (job !== null) {
      set(last, "href", `#/jobs/${job.jobId}`);
      set(last, "class", `status ${STATUS[job.status]?.weight ?? ""}`);
      text(last, `${job.exportType} ${job.status}`);
    }
    show(lastAt, of.lastRunAt !== null);
    if (of.lastRunAt !== null) lastAt.at(of.lastRunAt);
    show(never, of.lastRunAt === null);
    show(skipped, of.skipped > 0);
    text(skipped, `${count(of.skipped)} skipped since: an export was still open`);
    show(nextAt, of.nextAt !== null);
    show(due, of.nextAt !== null && Date.parse(of.nextAt) <= now());
    show(none, of.nextAt === null);
    if (of.nextAt !== null) nextAt.at(of.nextAt);
    show(refused, of.refused !== null);
    show(meaning, of.refused !== null);
    text(refused, of.refused ?? "");
    text(meaning, of.refused === null ? "" : (REFUSED[of.refused] ?? "It is tried again every second."));
  };
  return { node: row(COLUMNS, cells), update };
}
