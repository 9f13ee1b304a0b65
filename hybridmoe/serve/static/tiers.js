// Experts by tier (VRAM, RAM, disk), from the server's metrics.

const LINE = /^hybridmoe_expert_(?:accesses_total\{tier="(\w+)"\}|(read_\w+)_total) (\S+)$/gm;

/** Fetch the counts so far: accesses by tier, `read_bytes`, `read_wait_seconds`.
 * Null if the server has no expert cache, or does not reply.
 */
export async function tierCounts(key) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  try {
    const reply = await fetch("/metrics", { headers });
    const found = [...(await reply.text()).matchAll(LINE)];
    return found.length ? Object.fromEntries(found.map(([, tier, what, n]) => [tier ?? what, Number(n)])) : null;
  } catch {
    return null;
  }
}

/** Name what was counted between two fetches: figures by name, none without a cache. */
export function tierRows(before, after) {
  if (!before || !after) return {};
  const since = (name) => after[name] - (before[name] ?? 0);
  const tiers = ["VRAM", "RAM", "disk"].filter((tier) => tier in after);
  const total = tiers.reduce((sum, tier) => sum + since(tier), 0);
  if (!total) return {};
  const found = tiers.map((tier) => `${((100 * since(tier)) / total).toFixed(1)} % ${tier}`).join(", ");
  if (!("disk" in after)) return { found };
  const read = `${(since("read_bytes") / 1e9).toFixed(2)} GB read, ${since("read_wait_seconds").toFixed(2)} s waited`;
  return { found, disk: read };
}
