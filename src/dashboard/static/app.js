// What pages do better with a script. Every page works without it.
"use strict";
(() => {
  const POPUP = "keyward-connect";
  const root = document.documentElement;
  root.classList.add("js");

  // A message is for this page only; a reload shall not say it again.
  const here = new URL(location.href);
  if (here.searchParams.has("done")) {
    here.searchParams.delete("done");
    history.replaceState(null, "", here);
  }

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(button.dataset.copy);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Select and copy";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }

  // Connecting goes through a small window, so that the dashboard stays. Blocked, or on a small screen: the whole page.
  const roomy = matchMedia("(min-width: 640px)").matches;
  for (const form of document.querySelectorAll("form[data-popup]")) {
    form.addEventListener("submit", () => {
      form.removeAttribute("target");
      const popup = roomy && window.open("", POPUP, "popup=yes,width=540,height=760");
      if (popup) {
        form.target = POPUP;
        popup.focus();
      }
    });
  }

  // The small window says how it ended. Nobody else's messages count.
  window.addEventListener("message", (event) => {
    if (event.origin !== location.origin || !event.data) return;
    const ends = { "keyward:connected": "connected", "keyward:failed": "connect_failed" };
    const done = Object.hasOwn(ends, event.data.type) ? ends[event.data.type] : null;
    if (!done) return;
    const provider = String(event.data.provider);
    const place = /^[a-z0-9_]{1,64}$/.test(provider) ? `#provider-${provider}` : "";
    history.replaceState(null, "", `/integrations?done=${done}${place}`);
    location.reload();
  });

  const inPopup = () => {
    try {
      // Throws when the opener is somebody else's page.
      return window.name === POPUP && !!window.opener && window.opener.location.origin === location.origin;
    } catch {
      return false;
    }
  };

  // "Connecting integration…": the code leaves the address bar and the history, then goes in, once.
  const auto = document.querySelector("form[data-auto]");
  if (auto) {
    history.replaceState(null, "", location.pathname);
    let sent = false;
    auto.addEventListener("submit", (event) => {
      if (sent) event.preventDefault();
      sent = true;
    });
    // After a paint: a page that is left before its first one is never seen. A hidden page paints nothing, hence the timer.
    const go = () => { if (!sent) auto.requestSubmit(); };
    requestAnimationFrame(() => requestAnimationFrame(go));
    setTimeout(go, 500);
  }

  if (inPopup()) {
    const result = document.querySelector("[data-result]");
    if (result) {
      const message = { type: `keyward:${result.dataset.result}`, provider: result.dataset.provider };
      window.opener.postMessage(message, location.origin);
      // A failure stays, so that its reason can be read.
      if (result.dataset.result === "connected") setTimeout(() => window.close(), 900);
    }
    for (const back of document.querySelectorAll("[data-back]")) {
      back.addEventListener("click", (event) => {
        event.preventDefault();
        window.close();
      });
    }
  }
})();
