// The jobs that somebody may have to look at: those that are open, those that failed and that nothing has followed, and
// the last ones that ended. All are found, however many have been asked for since.

import { asked, get } from "./api.js";
import { SOON_MS } from "./aside.js";
import { el, keyed, show, table, text } from "./dom.js";
import { count, elapsed } from "./figures.js";
import { columns, jobRow, keyOf, tellEnds } from "./jobrow.js";
import { exportsOf, isOpen, withHelp } from "./words.js";

const NEWEST = 25;
const MOST_OPEN = 100;
const LIST_SECONDS = 10;
// How many rows of each kind are shown; of those that ended as many as there is room for.
const SHOWN = { running: 10, failed: 10, waiting: 5 };
const ROWS = 8;
const FEWEST_ENDED = 4;

const COLUMNS = columns(false);
const lanesOf = (job) => exportsOf(job).map(({ dataset }) => `${job.consumerId ?? job.jobId}/${dataset}`);

export function presentSection() {
  const list = table("Exports that are open or failed, and the last ones", COLUMNS);
  const rest = el("p", { class: "hint" });
  const heading = el("h2", { id: "present-heading", tabindex: "-1" }, "Recent exports");
  const node = el(
    "section",
    { "aria-labelledby": heading.id },
    el("div", { class: "heading" }, heading, el("a", { href: "#/exports" }, "All exports")),
    list.node,
    rest,
  );

  // The last answers: the newest jobs, which may be all; those that run; those that wait, if they are not among these.
  let newest = [];
  let areAll = false;
  let running = { items: [], nextCursor: null };
  let waiting = { items: [], nextCursor: null };
  let failed = [];
  // What an answer doesn't show of those that are open is unknown.
  let isUnknown = true;
  let seen = null;
  let listedAt = 0;
  let listAt = 0;
  let askedThen = 0;

  const open = () => [...running.items, ...waiting.items, ...newest].some(isOpen);

  async function readNewest(signal) {
    const page = await get("/exports", { limit: NEWEST }, signal);
    isUnknown ||= !page.items.some((job) => seen?.has(job.jobId));
    const ended = tellEnds(page.items, seen);
    seen = new Map(page.items.map((job) => [job.jobId, job.status]));
    [newest, areAll, askedThen] = [page.items, page.nextCursor === null, asked.size];
    listedAt = elapsed();
    listAt = listedAt + LIST_SECONDS * 1000;
    return ended;
  }

  function readStatus(status, signal) {
    return get("/exports", { status, limit: MOST_OPEN }, signal);
  }

  async function refresh(signal) {
    let ended = false;
    const runBefore = running.items.map(keyOf);
    if (areAll || !open() || elapsed() >= listAt || asked.size !== askedThen) {
      ended = await readNewest(signal);
      const ofStatus = (status) => ({ items: newest.filter((job) => job.status === status), nextCursor: null });
      if (areAll) [running, waiting, isUnknown] = [ofStatus("processing"), ofStatus("pending"), false];
      else if (isUnknown || open()) waiting = await readStatus("pending", signal);
    }
    if (!areAll && (isUnknown || open())) {
      running = await readStatus("processing", signal);
      isUnknown = false;
      // Of what runs no more, or has begun to, the list knows the rest.
      const runNow = new Set(running.items.map(keyOf));
      if (runNow.size !== runBefore.length || runBefore.some((id) => !runNow.has(id))) {
        listAt = Math.min(listAt, listedAt + SOON_MS);
        ended = true;
      }
    }
    draw();
    return { moves: open(), ended };
  }

  function groups() {
    const taken = new Set();
    const fresh = (jobs) => withHelp(jobs, [...running.items, ...waiting.items, ...newest]).filter((job) => !taken.has(job.jobId) && taken.add(job.jobId));
    const runs = fresh(running.items);
    const waits = fresh([...waiting.items, ...newest.filter(isOpen)]);
    // One that another has followed in each of its lanes is dealt with.
    const last = new Map();
    for (const job of [...runs, ...waits, ...newest].sort((one, other) => (one.createdAt < other.createdAt ? -1 : 1))) {
      for (const lane of lanesOf(job)) last.set(lane, job.createdAt);
    }
    const isLast = (job) => lanesOf(job).some((lane) => !(last.get(lane) > job.createdAt));
    // A list has the whole job, a lane its own export of it.
    const whole = new Map(newest.map((job) => [job.jobId, job]));
    const fails = new Set(failed.map((job) => whole.get(job.jobId) ?? job));
    return { runs, fails: fresh([...fails].filter(isLast)), waits, ends: fresh(newest.filter((job) => !isOpen(job))) };
  }

  function draw() {
    const { runs, fails, waits, ends } = groups();
    const first = [...runs.slice(0, SHOWN.running), ...fails.slice(0, SHOWN.failed), ...waits.slice(0, SHOWN.waiting)];
    const shown = [...first, ...ends.slice(0, Math.max(FEWEST_ENDED, ROWS - first.length))];
    keyed(list.body, shown, keyOf, (job) => jobRow(COLUMNS, job));
    show(list.node, shown.length > 0);
    show(node, shown.length > 0);
    const unseen = Object.entries({ run: runs.length - SHOWN.running, failed: fails.length - SHOWN.failed, wait: waits.length - SHOWN.waiting });
    const more = unseen.filter(([, number]) => number > 0).map(([verb, number]) => `${count(number)} more ${verb}`);
    show(rest, more.length > 0);
    text(rest, `Not shown here: ${more.join(", ")}.`);
  }

  // `jobs` are the last ones of their lanes, and failed.
  function failures(jobs) {
    failed = jobs;
    if (seen !== null) draw();
  }

  // How many there are of each kind, and whether there may be more.
  function counts() {
    const { waits, runs } = groups();
    return {
      running: { number: runs.length, isMore: running.nextCursor !== null },
      // One that ran a moment ago isn't among them.
      waiting: { number: waits.filter(({ status }) => status === "pending").length, isMore: waiting.nextCursor !== null },
    };
  }
  return { node, heading, refresh, failures, counts };
}
