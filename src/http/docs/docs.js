// Shows the document of this service in Swagger UI.

import { theKey } from "/page/api.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", colour);
colour();

// The address is the open call's: an anchor can't be used to skip.
document.querySelector("[data-skip]").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("content").focus();
});

const ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#calls",
  deepLinking: true,
  filter: true,
  defaultModelsExpandDepth: 0,
  // Swagger UI would ask another host whether the document is valid.
  validatorUrl: null,
  onComplete: () => {
    if (theKey() !== null) ui.preauthorizeApiKey("key", theKey());
  },
});
