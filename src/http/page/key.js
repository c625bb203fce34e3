// The key, where the service wants one: asked for in a dialog, tried before it is kept, and kept for this tab alone.

import { Problem, call, hasKey, keyName, useKey } from "./api.js";
import { dialog, el, set, show, text } from "./dom.js";
import { wake } from "./pulse.js";

let open = null;
// What is shown was opened by another key.
let isStale = false;

// `refusal` is why the service wants one, or another one.
export function askForKey(refusal) {
  if (hasKey() && refusal) {
    // It was good before: revoked or expired since.
    useKey(null);
    tellKey();
    isStale = true;
  }
  if (open !== null) return;
  const field = el("input", {
    id: "key-field",
    type: "password",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: "cdcx_…",
    required: true,
    "aria-describedby": "key-about key-error",
  });
  const error = el("p", { id: "key-error", class: "error", role: "alert" });
  const use = el("button", { type: "submit", class: "main" }, "Use this key");
  const form = el(
    "form",
    { novalidate: true, onsubmit: (event) => tryKey(event, field, use, error) },
    el("p", { id: "key-about" }, "The service answers only to whoever has a key. It stays in this tab, and those that are opened from it, until they are closed or you forget it."),
    el("label", { for: "key-field" }, "Key"),
    field,
    error,
    el(
      "p",
      { class: "buttons" },
      use,
      el("button", { type: "button", onclick: () => open.close() }, "Not now"),
    ),
    el("p", { class: "hint" }, "Whoever runs the service makes keys: ", el("code", {}, "cdc-export keys create --name NAME --dataset NAME"), "."),
  );
  if (refusal?.code === "key_invalid") text(error, refusal.message);
  open = dialog("A key is needed", form);
  open.addEventListener("close", () => (open = null));
  field.focus();
}

async function tryKey(event, field, use, error) {
  event.preventDefault();
  const given = field.value.trim();
  const complain = (words) => {
    text(error, words);
    set(field, "aria-invalid", true);
    field.focus();
  };
  // A header takes nothing else.
  if (!/^[\x21-\x7e]+$/.test(given)) return complain("A key begins with cdcx_, and has no blanks in it.");
  use.disabled = true;
  try {
    await call("GET", "/exports?limit=1", { key: given });
  } catch (refused) {
    // One that may not read is a good key all the same; what it lacks is said where it is missed.
    if (!(refused instanceof Problem && refused.status === 403)) return complain(refused.message);
  } finally {
    use.disabled = false;
  }
  useKey(given);
  if (isStale) return location.reload();
  tellKey();
  open?.close();
  wake();
}

function forget() {
  useKey(null);
  tellKey();
  // Everything that it opened goes too.
  location.reload();
}

function tellKey() {
  const button = document.getElementById("key");
  show(button, hasKey());
  text(button, hasKey() ? `Forget key ${keyName()}` : "");
}

export function watchKey() {
  document.getElementById("key").addEventListener("click", forget);
  tellKey();
}
