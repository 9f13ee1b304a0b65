// Server-sent events of a POST, which EventSource cannot send.

const LOST = "the connection was lost before the answer's end";

/** The JSON of each event of an answer, until "[DONE]". Throws what the server says is wrong, and
 * where the connection ends before.
 */
export async function* events(path, body, { key, signal }) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const request = { method: "POST", headers, body: JSON.stringify(body), signal };
  const answer = await orLost(fetch(path, request), "no connection to the server");
  if (!answer.ok) throw new Error(await reason(answer));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await orLost(reader.read(), LOST);
    if (done) throw new Error(LOST);
    text += value;
    const whole = text.split("\n\n");
    text = whole.pop();
    for (const event of whole) {
      if (!event.startsWith("data: ")) continue; // a comment that keeps the connection
      const data = event.slice(6);
      if (data === "[DONE]") return;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new Error(parsed.error.message);
      yield parsed;
    }
  }
}

/** What the promise gives; an error that says no more than that the network failed, in words. */
async function orLost(promise, words) {
  try {
    return await promise;
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error(words);
  }
}

async function reason(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the server answered ${answer.status}`;
  }
}
