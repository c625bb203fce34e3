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

// The command that is shown for a call may be copied to anywhere, so it names the variable that has the key.
const withoutKey = (request) =>
  request?.getIn(["headers", "Authorization"]) ? request.setIn(["headers", "Authorization"], "Bearer $CDC_EXPORT_KEY") : request;
const maskKey = {
  wrapComponents: {
    curl: (Curl, { React }) => (props) => React.createElement(Curl, { ...props, request: withoutKey(props.request) }),
  },
};

const ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#calls",
  deepLinking: true,
  filter: true,
  defaultModelsExpandDepth: 0,
  plugins: [maskKey],
  // Swagger UI would ask another host whether the document is valid.
  validatorUrl: null,
  onComplete: () => {
    if (theKey() !== null) ui.preauthorizeApiKey("key", theKey());
  },
});
