// What was said, in this tab alone: turns, an attempt under way, a message that failed.

const PLACE = "hybridmoe.conversation";
const MOST = 1_000_000; // characters that are kept over a reload

/** Turns are {role, content, reasoning_content?, note?}; a note says why a turn ended early. */
export class Conversation {
  turns = [];
  failed = null; // {text, at, problem}: no part of the conversation; text null: only its answer
  isCut = false; // the first turns were too long to keep
  attempt = null; // {text, at, replaced}: what an answer under way stands for

  /** Say something, in place of all from turn `at` on; the turn that is to hold the answer. */
  ask(text, at = this.turns.length) {
    return this.begin(text, at, [{ role: "user", content: text }]);
  }

  /** Another answer in place of turn `at`. */
  again(at) {
    return this.begin(null, at, []);
  }

  begin(text, at, asked) {
    const reply = { role: "assistant", content: "" };
    const replaced = this.turns.splice(at, this.turns.length, ...asked, reply);
    this.attempt = { text, at, replaced };
    this.failed = null;
    return reply;
  }

  /** The answer under way has ended: well, or by a problem, before or after its first word. */
  end(problem = null) {
    const { text, at, replaced } = this.attempt;
    const reply = this.turns.at(-1);
    this.attempt = null;
    if (problem === null) return;
    if (reply.content || reply.reasoning_content) {
      reply.note = problem;
      return;
    }
    this.turns.splice(at, this.turns.length, ...replaced);
    this.failed = { text, at, problem };
  }

  /** The turns as the endpoint takes them, without the one that is to come. */
  get sent() {
    return this.turns.slice(0, -1).map(({ note, ...turn }) => turn);
  }

  clear() {
    this.turns = [];
    this.failed = this.attempt = null;
    this.isCut = false;
  }

  /** Keep it over a reload; of a long one its last turns. */
  save() {
    let { turns, failed, isCut, attempt } = this;
    let state = JSON.stringify({ turns, failed, isCut, attempt });
    while (state.length > MOST && turns.length > 2) {
      const dropped = 2 * Math.ceil(turns.length / 8);
      turns = turns.slice(dropped);
      failed = moved(failed, dropped);
      attempt = moved(attempt, dropped);
      isCut = true;
      state = JSON.stringify({ turns, failed, isCut, attempt });
    }
    try {
      sessionStorage.setItem(PLACE, state.length > MOST ? "" : state);
    } catch {
      sessionStorage.removeItem(PLACE); // no room: better none than an old one
    }
  }

  /** What was saved; an answer that was under way then has ended. */
  load() {
    try {
      const { turns, failed, isCut, attempt } = JSON.parse(sessionStorage.getItem(PLACE));
      if (!turns.every(isTurn)) throw new TypeError("not this page's");
      Object.assign(this, { turns, failed, isCut, attempt });
      if (attempt) this.end("the page was left");
    } catch {
      this.clear(); // nothing there, or nothing of this form
    }
  }
}

function isTurn({ role, content }) {
  return ["user", "assistant"].includes(role) && typeof content === "string";
}

/** The same, once so many turns before it are gone; null where its own place is. */
function moved(state, dropped) {
  return state && state.at >= dropped ? { ...state, at: state.at - dropped } : null;
}
