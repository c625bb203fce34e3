// A list that grows by pages and stays fresh: what one answer can hold is asked for anew each time, what lies beyond it is read
// when somebody wants to see it, and stays as it was then.

import { get } from "./api.js";

// Rows of an answer at most.
const MOST = 200;

export function paged(path, step, keyOf) {
  let wanted = step;
  let items = [];
  let cursor = null;

  async function read(query, signal) {
    const page = await get(path, { ...query, limit: Math.min(wanted, MOST) }, signal);
    const held = new Set(page.items.map(keyOf));
    // New rows push older ones over the answer's end: those are kept too.
    const end = page.items.length === 0 ? -1 : items.findIndex((item) => keyOf(item) === keyOf(page.items.at(-1)));
    const rest = wanted > MOST && end >= 0 ? items.slice(end + 1).filter((item) => !held.has(keyOf(item))) : [];
    items = [...page.items, ...rest];
    if (rest.length === 0) cursor = page.nextCursor;
    if (wanted > MOST && items.length < wanted && cursor !== null) {
      const next = await get(path, { ...query, limit: step, cursor }, signal);
      items.push(...next.items);
      cursor = next.nextCursor;
    }
    return items;
  }

  return { read, more: () => (wanted += step), ends: () => cursor === null };
}
