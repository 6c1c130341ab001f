// Asking Flower for JSON. What goes wrong is an Error whose message people may read.

export async function ask(url, options) {
  const reply = await fetch(url, { ...options, credentials: "same-origin", redirect: "manual" });
  const said = reply.headers.get("Content-Type")?.includes("json") ? await reply.json() : null;
  if (reply.ok && said) return said;
  throw new Error(wantsLogin(reply, said) ? "Flower wants you to log in again" : said?.error || `Flower answered ${reply.status}`);
}

// Its login page, the way to another's, or a refusal that is not the tab's own: that one has a reason.
function wantsLogin(reply, said) {
  return reply.ok || reply.type === "opaqueredirect" || reply.status === 401 || (reply.status === 403 && (said?.error ?? "Forbidden") === "Forbidden");
}
