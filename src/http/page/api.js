// Calls of the API, and all that is known of the connection by how they went.

import { serverSays } from "./figures.js";
import { isOpen } from "./words.js";

// The longest that an answer may take, unless it is streamed or waits for a job's end.
const ANSWER_TIMEOUT_MS = 15_000;
// The longest without an event: the service sends a comment every 15 seconds where nothing happens.
const EVENT_TIMEOUT_MS = 40_000;
const STORED = "cdc-export.key";

// An answer that is an error, as RFC 9457 has it. What the service says of it is `message`.
export class Problem extends Error {
  constructor(answer, body) {
    super(body?.detail ?? `the answer was ${answer.status} ${answer.statusText}`.trim());
    this.status = answer.status;
    this.code = body?.code ?? null;
    this.field = body?.field ?? null;
    this.requestId = answer.headers.get("X-Request-Id");
    const seconds = Number(answer.headers.get("Retry-After"));
    this.retryAfter = seconds > 0 ? seconds : null;
  }
}

// No answer, or one that isn't the service's: a proxy's for a service that it can't reach.
export class Unreachable extends Error {}

let key = sessionStorage.getItem(STORED);

// The browser may show this page again as it was left, with its data and its key. Meanwhile the key may be forgotten.
addEventListener("pageshow", (event) => {
  if (event.persisted && sessionStorage.getItem(STORED) !== key) location.reload();
});

export function hasKey() {
  return key !== null;
}

export function theKey() {
  return key;
}

// Its public part.
export function keyName() {
  return key?.split("_").slice(0, 2).join("_") ?? null;
}

// For this tab alone, and until it is closed.
export function useKey(given) {
  key = given;
  if (given === null) sessionStorage.removeItem(STORED);
  else sessionStorage.setItem(STORED, given);
}

function headersOf({ headers, key: another }) {
  const sent = new Headers(headers);
  const used = another ?? key;
  if (used) sent.set("Authorization", `Bearer ${used}`);
  return sent;
}

// An answer whose status is good; its body isn't read yet.
async function answered(method, path, options) {
  const sent = headersOf(options);
  const body = options.body === undefined ? undefined : JSON.stringify(options.body);
  if (body !== undefined) sent.set("Content-Type", "application/json");
  let answer;
  try {
    answer = await fetch(path, { method, headers: sent, body, signal: options.signal, cache: "no-store", redirect: "error" });
  } catch (error) {
    if (options.signal?.aborted && options.signal.reason?.name !== "TimeoutError") throw error;
    throw new Unreachable("the service gave no answer");
  }
  serverSays(answer.headers.get("Date"));
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => null);
  if (said === null && answer.status >= 502) throw new Unreachable(`the answer was ${answer.status} ${answer.statusText}`.trim());
  throw new Problem(answer, said);
}

// A call whose answer is JSON, or nothing.
export async function call(method, path, options = {}) {
  const late = AbortSignal.timeout(ANSWER_TIMEOUT_MS);
  const signal = options.signal ? AbortSignal.any([options.signal, late]) : late;
  const answer = await answered(method, path, { ...options, signal });
  try {
    return answer.status === 204 ? null : await answer.json();
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Unreachable("the service's answer broke off");
  }
}

export function get(path, query = {}, signal = undefined) {
  const set = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const asked = new URLSearchParams(set).toString();
  return call("GET", asked ? `${path}?${asked}` : path, { signal });
}

// The jobs that were asked for in this tab.
export const asked = new Set();

// The open jobs that this tab asks to cancel: the service says so of a job, too, once it has the call.
export const cancelling = new Set();

// The checks of the service, whether it is ready or not.
export async function getHealth(signal) {
  const failed = () => {
    throw new Unreachable("the service gave no answer");
  };
  const answer = await fetch("/health/ready", { signal, cache: "no-store", redirect: "error" }).catch(failed);
  return answer.json().catch(failed);
}

export function isLeaving(job) {
  return isOpen(job) && (job.cancelRequestedAt !== null || cancelling.has(job.jobId));
}

// A call that makes a job. Clicked again after an answer that was lost it carries the same name, and makes no second job.
export function submission(path, options) {
  const name = Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(16)).join("-");
  return async () => {
    const job = await call("POST", path, { ...options, headers: { ...options?.headers, "Idempotency-Key": name } });
    asked.add(job.jobId);
    return job;
  };
}

export function jobPath(id, rest = "") {
  return `/exports/${encodeURIComponent(id)}${rest}`;
}

// A path below an export: `of` is a job of one dataset, or an export of a job of several. The latter has `isOneOf` and
// its job's id, and the path names its dataset.
export function exportPath(of, rest) {
  return jobPath(of.jobId, rest) + (of.isOneOf ? `?dataset=${encodeURIComponent(of.dataset)}` : "");
}

// A job's events until it ends, each a job. Read by `fetch`: an EventSource can't send a key.
export async function follow(id, onJob, signal) {
  const silence = new AbortController();
  const both = AbortSignal.any([signal, silence.signal]);
  let timer = setTimeout(() => silence.abort(), EVENT_TIMEOUT_MS);
  try {
    const answer = await answered("GET", jobPath(id, "/events"), { signal: both });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let waiting = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), EVENT_TIMEOUT_MS);
      const events = (waiting + value).split("\n\n");
      waiting = events.pop();
      for (const event of events) {
        const data = event.split("\n").filter((line) => line.startsWith("data:"));
        if (data.length > 0) onJob(JSON.parse(data.map((line) => line.slice(5)).join("\n")));
      }
    }
  } catch (error) {
    if (signal.aborted || error instanceof Problem) throw error;
    throw new Unreachable("the service broke off");
  } finally {
    clearTimeout(timer);
  }
}

// The bytes of an export's file as they come.
export async function fileOf(of, path) {
  return answered("GET", exportPath(of, path), {});
}
