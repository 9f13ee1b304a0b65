// Responses under way over a reload: the database may be too slow for their last tokens.

const KEY = "hybridmoe.rescue";

/** Keep responses, as {chat, message}, while the page is left. */
export function rescue(cut) {
  if (!cut.length) return;
  try {
    localStorage.setItem(KEY, JSON.stringify(cut));
  } catch {
    // no space: what was saved some tokens ago stays
  }
}

/** Write the kept responses to the store. */
export async function restore(store) {
  try {
    for (const { chat, message } of JSON.parse(localStorage.getItem(KEY)) ?? []) await store.put(chat, [message]);
  } catch {
    // not this page's
  }
  localStorage.removeItem(KEY);
}
