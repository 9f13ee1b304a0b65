// Server-sent events of a POST request, which EventSource cannot send.

const LOST = "the connection was lost before the response ended";

/** Yield the JSON of each event, until "[DONE]".
 * Throws the server's error, or LOST if the connection ends earlier.
 */
export async function* events(path, body, { key, signal }) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const request = { method: "POST", headers, body: JSON.stringify(body), signal };
  const response = await orLost(fetch(path, request), "no connection to the server");
  if (!response.ok) throw Object.assign(new Error(await reason(response)), { status: response.status });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await orLost(reader.read(), LOST);
    if (done) throw new Error(LOST);
    text += value;
    const whole = text.split("\n\n");
    text = whole.pop();
    for (const event of whole) {
      if (!event.startsWith("data: ")) continue; // a keep-alive comment
      const data = event.slice(6);
      if (data === "[DONE]") return;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new Error(parsed.error.message);
      yield parsed;
    }
  }
}

/** Await a promise; replace a bare network error by `words`. */
async function orLost(promise, words) {
  try {
    return await promise;
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error(words);
  }
}

async function reason(response) {
  if (response.status === 401) return "The server wants an API key: enter it in the settings.";
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server responded with ${response.status}`;
  }
}
