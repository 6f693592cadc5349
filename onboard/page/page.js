// Asks for the page again and puts its content in place: all words come from the drone, and it works without this too.
const EVERY_MS = 2000;

async function refresh() {
  let lost = true;
  try {
    const answer = await fetch("/", { signal: AbortSignal.timeout(3 * EVERY_MS) });
    const next = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of ["header", "main", "footer"]) {
      const [old, fresh] = [document.querySelector(part), next.querySelector(part)];
      if (old.outerHTML !== fresh.outerHTML) old.replaceWith(fresh);
    }
    document.title = next.title;
    lost = false;
  } catch {
    // the drone is away: what stands here is old, and says so
  }
  document.querySelector("#lost").hidden = !lost;
  document.body.classList.toggle("lost", lost);
  setTimeout(refresh, EVERY_MS);
}

setTimeout(refresh, EVERY_MS);
