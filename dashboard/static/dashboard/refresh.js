// Fetches the page every two seconds and exchanges what it shows, so that focus and scrolling stay.
// A hidden page rests; a failed fetch is marked and tried again.
"use strict";

const EVERY = 2000; // milliseconds

async function refresh() {
  const main = document.getElementById("overview");
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (answer.redirected) {
      location.reload(); // signed out meanwhile
      return;
    }
    if (!answer.ok) throw new Error(String(answer.status));
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    main.replaceChildren(...page.getElementById("overview").childNodes);
    main.classList.remove("stale");
  } catch {
    main.classList.add("stale");
  }
}

async function again() {
  if (!document.hidden) await refresh();
  setTimeout(again, EVERY);
}

setTimeout(again, EVERY);
