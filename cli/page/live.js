// Follows the server: what changed is put in its place; what is open, chosen, scrolled or in focus stays so.
{
  const main = document.querySelector("main");
  const follow = document.getElementById("follow");
  const { events, body } = document.body.dataset;
  const key = (part) => part.id || part.tagName;
  const sent = new Map([...main.children].map((part) => [key(part), part.outerHTML]));
  const focusable = "a, summary, input, button, [tabindex]";
  // What an element is about, wherever it is by now; a chart's label goes on with its numbers.
  const named = (element) => {
    const label = element.getAttribute("aria-label") ?? element.textContent;
    return `${element.tagName} ${element.value || element.getAttribute("href") || label.split(":")[0]}`;
  };
  let source = null;
  let busy = false;
  let again = false;

  function keep(was, part) {
    const both = (selector, keep) => {
      const olds = was.querySelectorAll(selector);
      part.querySelectorAll(selector).forEach((next, i) => olds[i] && keep(olds[i], next));
    };
    both("details", (old, next) => (next.open = old.open));
    const chosen = new Set([...was.querySelectorAll("input:checked")].map((input) => input.value));
    part.querySelectorAll("input").forEach((input) => (input.checked = chosen.has(input.value)));
    const focused = was.contains(document.activeElement) ? named(document.activeElement) : null;
    was.replaceWith(part);
    both(".wide, .row, dd, pre", (old, next) => next.scrollTo(old.scrollLeft, old.scrollTop));
    const next = [...part.querySelectorAll(focusable)].find((element) => named(element) === focused);
    next?.focus({ preventScroll: true });
    point(part);
  }

  function put(html) {
    const fresh = document.createElement("main");
    fresh.innerHTML = html;
    const gone = new Map([...main.children].map((part) => [key(part), part]));
    let last = null;
    for (const part of [...fresh.children]) {
      const was = gone.get(key(part));
      const written = part.outerHTML;
      if (!was) {
        last ? last.after(part) : main.prepend(part);
        point(part);
      } else if (sent.get(key(part)) !== written) keep(was, part);
      last = part.isConnected ? part : was;
      sent.set(key(part), written);
      gone.delete(key(part));
    }
    for (const [name, part] of gone) {
      part.remove();
      sent.delete(name);
    }
  }

  async function refresh() {
    again = true;
    if (busy) return;
    busy = true;
    while (again) {
      again = false;
      const began = performance.now();
      try {
        const answer = await fetch(body);
        if (answer.ok) put(await answer.text());
        else follow.textContent = await answer.text();
      } catch {
        follow.textContent = "the server does not answer";
      }
      // A page that takes long is asked for less often: the run has better things to do.
      await new Promise((done) => setTimeout(done, 4 * (performance.now() - began)));
    }
    busy = false;
  }

  function open() {
    if (source) return;
    source = new EventSource(source_address());
    source.addEventListener("open", () => (follow.textContent = "live"));
    source.addEventListener("error", () => {
      const is_over = source?.readyState === EventSource.CLOSED;
      follow.textContent = is_over ? "no longer live" : "the server does not answer; trying again";
    });
    source.addEventListener("changed", (event) => {
      seen = event.lastEventId;
      refresh();
    });
    source.addEventListener("ended", () => {
      close();
      ended = true;
      follow.textContent = "ended";
    });
  }

  function close() {
    source?.close();
    source = null;
  }

  let ended = false;
  let seen = null;
  const source_address = () => (seen === null ? events : events.replace(/seen=[^&]*/, `seen=${seen}`));
  // Browsers keep few connections to one server: pages that nobody looks at give theirs back.
  document.addEventListener("visibilitychange", () => (document.hidden || ended ? close() : open()));
  if (!document.hidden) open();
}
