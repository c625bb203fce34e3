// Numbers, sizes and times as people read them; the exact value stays at hand in a title.

import { el, text } from "./dom.js";

const whole = new Intl.NumberFormat("en-US");

export function count(number) {
  return number === null || number === undefined ? "–" : whole.format(number);
}

export function rows(number) {
  return `${count(number)} ${number === 1 ? "row" : "rows"}`;
}

export function bytes(number) {
  if (number < 1000) return `${number} B`;
  const units = ["kB", "MB", "GB", "TB"];
  let size = number;
  let unit = "B";
  while (size >= 999.5 && units.length > 0) {
    size /= 1000;
    unit = units.shift();
  }
  return `${size.toFixed(size < 9.95 ? 1 : 0)} ${unit}`;
}

export function duration(seconds) {
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const s = Math.round(seconds);
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

// What is guessed from how it went so far is no exact figure.
export function about(seconds) {
  if (seconds < 55) return `about ${Math.max(10, Math.round(seconds / 10) * 10)} s`;
  if (seconds < 5400) return `about ${Math.round(seconds / 60)} min`;
  return `about ${Math.round(seconds / 3600)} h`;
}

// How far this machine's clock is behind the service's; ages would be wrong by it.
let behind = 0;

export function serverSays(date) {
  const off = Date.parse(date) - Date.now();
  // The header has whole seconds.
  if (Number.isFinite(off)) behind = Math.abs(off) < 2000 ? 0 : off;
}

export function now() {
  return Date.now() + behind;
}

// For how long something is left alone: a clock that is set meanwhile changes nothing about it.
export function elapsed() {
  return performance.now();
}

export function ago(time) {
  const seconds = (now() - Date.parse(time)) / 1000;
  if (Number.isNaN(seconds)) return time;
  const distance = Math.abs(seconds);
  let words;
  if (distance < 5) return "just now";
  if (distance < 60) words = `${Math.floor(distance)} s`;
  else if (distance < 3600) words = `${Math.floor(distance / 60)} min`;
  else if (distance < 172800) words = `${Math.floor(distance / 3600)} h`;
  else words = `${whole.format(Math.floor(distance / 86400))} days`;
  return seconds > 0 ? `${words} ago` : `in ${words}`;
}

export function utc(time) {
  return time.replace("T", " ").replace("Z", " UTC");
}

// The hour of a day that begins at this moment, in milliseconds.
export function hourOf(moment) {
  return new Date(moment).toISOString().slice(11, 16);
}

// A time that ages by itself (`tick`), with the exact one in its title.
export function when(time) {
  const node = el("time", {});
  node.at = (moment) => {
    if (node.dateTime !== moment) {
      node.dateTime = moment;
      node.title = utc(moment);
    }
    text(node, ago(moment));
  };
  if (time) node.at(time);
  node.dataset.ages = "";
  return node;
}

export function tick() {
  for (const node of document.querySelectorAll("time[data-ages]")) {
    if (node.dateTime) text(node, ago(node.dateTime));
  }
}
