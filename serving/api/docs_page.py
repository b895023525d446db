"""GET /docs: the OpenAPI description as one self-contained page, so that it also works without the internet."""
# ruff: noqa: E501

from __future__ import annotations

DOCS_HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Nightjar API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b2330}
 h1{margin-bottom:0} h2{margin-top:2rem;text-transform:capitalize}
 details{border:1px solid #ccd3dd;border-radius:6px;margin:.5rem 0;padding:.5rem .8rem}
 summary{cursor:pointer} code,pre,textarea{font:13px/1.45 ui-monospace,monospace}
 pre{background:#f4f6f9;padding:.6rem;overflow:auto;border-radius:4px;max-height:26rem}
 textarea{width:100%;min-height:9rem;box-sizing:border-box} input{font:inherit;width:14rem}
 .verb{display:inline-block;width:3.6rem;font-weight:700} .post{color:#0a6b3d} .get{color:#1257a8}
 table{border-collapse:collapse} td,th{text-align:left;padding:.15rem .8rem .15rem 0;vertical-align:top}
</style></head><body>
<h1>Nightjar API</h1><p id="about"></p><p><a href="openapi.json">openapi.json</a></p><main id="main"></main>
<script>
const make = (tag, text, name) => { const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text; if (name) e.className = name; return e; };
const follow = (api, s) => s && s.$ref ? api.components.schemas[s.$ref.split("/").pop()] : s || {};
const typeOf = s => s.$ref ? s.$ref.split("/").pop() : s.anyOf ? s.anyOf.map(typeOf).join(" or ")
  : s.type === "array" ? "list of " + typeOf(s.items || {}) : s.type || "any";
function fieldTable(schema) {
  const table = make("table");
  for (const [name, field] of Object.entries(schema.properties || {})) {
    const row = table.insertRow(), limits = [];
    for (const k of ["default", "minimum", "maximum", "maxLength", "maxItems"])
      if (field[k] !== undefined && typeof field[k] !== "object") limits.push(k + " " + field[k]);
    row.append(make("td", name + ((schema.required || []).includes(name) ? " *" : "")), make("td", typeOf(field)),
      make("td", [field.description, limits.join(", ")].filter(Boolean).join(" · ")));
    row.cells[0].style.fontFamily = "ui-monospace,monospace";
  }
  return table;
}
function tryIt(verb, path, parameters, example) {
  const box = make("div"), output = make("pre"), inputs = parameters.map(p => {
    const label = make("label", p.name + " "), input = make("input");
    label.append(input); box.append(label, make("br")); return [p.name, input]; });
  let text; if (verb === "post") { text = make("textarea"); text.value = JSON.stringify(example || {}, null, 2);
    box.append(text); }
  const button = make("button", "Send"); output.hidden = true; box.append(button, output);
  button.onclick = async () => {
    const query = new URLSearchParams(inputs.filter(([, i]) => i.value).map(([n, i]) => [n, i.value])).toString();
    const options = verb === "post" ? {method: "POST", body: text.value, headers: {"content-type": "application/json"}} : {};
    const answer = await fetch("." + path + (query ? "?" + query : ""), options), body = await answer.text();
    let shown = body; try { shown = JSON.stringify(JSON.parse(body), null, 2); } catch {}
    output.hidden = false; output.textContent = answer.status + "\\n" + shown; };
  return box;
}
fetch("openapi.json").then(r => r.json()).then(api => {
  document.getElementById("about").textContent = api.info.description;
  const main = document.getElementById("main"), seen = {};
  for (const [path, verbs] of Object.entries(api.paths)) for (const [verb, call] of Object.entries(verbs)) {
    const tag = (call.tags || ["other"])[0];
    if (!seen[tag]) { seen[tag] = make("section"); seen[tag].append(make("h2", tag)); main.append(seen[tag]); }
    const box = make("details"), head = make("summary");
    head.append(make("span", verb.toUpperCase(), "verb " + verb), make("code", path), make("span", "  " + (call.summary || "")));
    box.append(head, make("p", call.description || ""));
    const media = call.requestBody && call.requestBody.content["application/json"];
    let example;
    if (media) {
      const schema = follow(api, media.schema), first = schema.oneOf ? schema.oneOf[0] : schema;
      example = media.examples ? Object.values(media.examples)[0].value : (schema.examples || [])[0];
      box.append(make("h4", "Body"), fieldTable(first));
    }
    if ((call.parameters || []).length) box.append(make("h4", "Parameters"),
      fieldTable({properties: Object.fromEntries(call.parameters.map(p => [p.name, {...p.schema, description: p.description}]))}));
    box.append(make("h4", "Answers"));
    for (const [status, given] of Object.entries(call.responses || {})) {
      box.append(make("p", status + " · " + given.description));
      const out = given.content && given.content["application/json"];
      if (out && out.schema) box.append(fieldTable(follow(api, out.schema)));
    }
    box.append(make("h4", "Try it"), tryIt(verb, path, call.parameters || [], example));
    seen[tag].append(box);
  }
});
</script></body></html>
"""
