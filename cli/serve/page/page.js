// The chat page: one conversation per column, both columns asked the same. Nothing leaves this server.
"use strict";

const $ = (id) => document.getElementById(id);
const make = (tag, kind, text) => {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text !== undefined) element.textContent = text;
  return element;
};

let columns = [];
let running = null;

class Column {
  constructor(model) {
    this.model = model;
    this.messages = [];
    this.section = make("section");
    this.section.tabIndex = 0;
    this.section.setAttribute("aria-label", `Conversation with ${model}`);
    this.turns = make("div", "turns");
    this.turns.append(make("h2", "", model));
    this.section.append(this.turns);
  }

  turn(kind, text) {
    const turn = make("div", `turn ${kind}`, text);
    this.turns.append(turn);
    this.scroll();
    return turn;
  }

  scroll() {
    this.section.scrollTop = this.section.scrollHeight;
  }

  async ask(text, signal) {
    this.turn("user", text);
    const messages = [...this.messages, { role: "user", content: text }];
    const turn = this.turn("assistant", "");
    const began = performance.now();
    let [answer, tokens, first] = ["", 0, 0];
    try {
      for await (const chunk of stream(this.model, messages, signal)) {
        if (chunk.error) throw new Error(chunk.error.message);
        if (chunk.usage) tokens = chunk.usage.completion_tokens;
        const more = chunk.choices?.[0]?.delta?.content;
        if (!more) continue;
        first ||= performance.now();
        answer += more;
        turn.textContent = answer;
        this.scroll();
      }
    } catch (error) {
      if (error.name !== "AbortError") {
        turn.remove();
        this.turn("error", error.message);
        return;
      }
    }
    this.messages = [...messages, { role: "assistant", content: answer }];
    if (tokens > 0) {
      const rest = Math.max(performance.now() - first, 1) / 1000;
      const pace = `${tokens} tokens, ${((tokens - 1) / rest).toFixed(1)} tokens/s, first after ${((first - began) / 1000).toFixed(2)} s`;
      this.turns.append(make("p", "pace", pace));
      this.scroll();
    }
  }
}

function headers() {
  const key = $("key").value.trim();
  return key ? { "Content-Type": "application/json", Authorization: `Bearer ${key}` } : { "Content-Type": "application/json" };
}

async function checked(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  if (response.status === 401) {
    $("settings").open = true;
    $("key").focus();
  }
  throw new Error(body?.error?.message ?? `the server answered ${response.status}`);
}

async function* stream(model, messages, signal) {
  const system = $("system").value.trim();
  const body = {
    model,
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    temperature: Number($("temperature").value) || 0,
    max_tokens: Math.max(1, Math.trunc(Number($("max-tokens").value) || 256)),
    stream: true,
    stream_options: { include_usage: true },
  };
  const response = await checked(await fetch("v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(body), signal }));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

async function loadModels() {
  const response = await checked(await fetch("v1/models", { headers: headers() }));
  const names = (await response.json()).data.map((model) => model.id);
  const options = (select, all) => select.replaceChildren(...all.map(([value, text]) => {
    const option = make("option", "", text);
    option.value = value;
    return option;
  }));
  options($("model-a"), names.map((name) => [name, name]));
  options($("model-b"), [["", "nothing"], ...names.map((name) => [name, name])]);
  $("model-b").value = names[1] ?? "";
  reset();
}

function reset() {
  running?.abort();
  const models = [$("model-a").value, $("model-b").value].filter(Boolean);
  columns = models.map((model) => new Column(model));
  $("columns").className = columns.length > 1 ? "two" : "";
  $("columns").replaceChildren(...columns.map((column) => column.section));
  $("message").focus();
}

async function send() {
  const text = $("message").value.trim();
  if (!text || running || columns.length === 0) return;
  $("message").value = "";
  running = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  await Promise.all(columns.map((column) => column.ask(text, running.signal)));
  running = null;
  $("send").disabled = false;
  $("stop").disabled = true;
  $("message").focus();
}

function tellLoading(error) {
  $("columns").replaceChildren(make("p", "turn error", error.message));
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
$("stop").addEventListener("click", () => running?.abort());
$("reset").addEventListener("click", reset);
$("model-a").addEventListener("change", reset);
$("model-b").addEventListener("change", reset);
$("key").addEventListener("change", () => loadModels().catch(tellLoading));
loadModels().catch(tellLoading);
