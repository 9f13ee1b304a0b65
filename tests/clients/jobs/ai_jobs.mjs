// Jobs of Vercel's AI SDK with its provider for OpenAI-compatible servers, and Anthropic's.
// `node ai_jobs.mjs URL KEY` prints one JSON object: each job's name, and null or a reason.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, generateText, stepCountIs, streamText, tool } from "ai";
import assert from "node:assert/strict";
import { z } from "zod";

const [url, apiKey] = process.argv.slice(2);
const MODEL = "hybridmoe-demo";
const compatible = createOpenAICompatible({
  name: "hybridmoe",
  baseURL: `${url}/v1`,
  apiKey,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const anthropic = createAnthropic({ baseURL: `${url}/v1`, apiKey });
const openaiModel = compatible(MODEL);
const models = [openaiModel, anthropic(MODEL)];
const greedy = { temperature: 0, maxOutputTokens: 90, maxRetries: 0 };
const get_weather = tool({
  description: "Get the weather in a city",
  inputSchema: z.object({ city: z.string() }),
  execute: async () => ({ sky: "foggy", temp: 7 }),
});
const sum = z.object({ first: z.number().int().max(99), second: z.number().int().max(99) });
const question = "What is 47 + 38?";

const jobs = {
  async generates() {
    for (const model of models) {
      const answer = await generateText({ model, prompt: question, ...greedy });
      assert.match(answer.text, /85$/);
      assert.equal(answer.finishReason, "stop");
      assert.ok(answer.usage.outputTokens > 3 && answer.usage.inputTokens > 3);
    }
  },
  async streams() {
    for (const model of models) {
      const stream = streamText({ model, prompt: question, ...greedy });
      const pieces = [];
      for await (const piece of stream.textStream) pieces.push(piece);
      assert.ok(pieces.length > 3);
      assert.match(pieces.join(""), /85$/);
      assert.ok((await stream.usage).outputTokens > 3);
    }
  },
  async loops_over_a_tool() {
    for (const model of models) {
      const options = { model, tools: { get_weather }, stopWhen: stepCountIs(4), ...greedy };
      const prompt = "What is the weather in Oslo?";
      const answer = await generateText({ ...options, prompt });
      assert.deepEqual(answer.steps[0].toolCalls[0].input, { city: "Oslo" });
      assert.match(answer.text, /foggy/);
      const stream = streamText({ ...options, prompt });
      assert.match((await stream.steps).at(-1).text, /foggy/);
    }
  },
  async answers_by_schema() {
    for (const model of models) {
      const output = Output.object({ schema: sum });
      const answer = await generateText({ model, output, prompt: question, ...greedy });
      assert.equal(typeof answer.output.first, "number");
    }
  },
  async remembers() {
    const messages = [{ role: "user", content: "My name is Bokira." }];
    const first = await generateText({ model: openaiModel, messages, ...greedy });
    messages.push(...first.response.messages, { role: "user", content: "What is my name?" });
    const second = await generateText({ model: openaiModel, messages, ...greedy });
    assert.match(second.text, /Bokira/);
  },
  async tells_errors() {
    const model = compatible("gpt-9");
    const failure = await generateText({ model, prompt: "x", ...greedy }).catch((error) => error);
    assert.ok(APICallError.isInstance(failure), failure);
    assert.equal(failure.statusCode, 404);
    assert.equal(failure.isRetryable, false);
  },
  async stops_when_aborted() {
    const abortSignal = AbortSignal.timeout(50);
    const endless = { maxOutputTokens: 900, providerOptions: { hybridmoe: { ignore_eos: true } } };
    const failure = await generateText({
      model: openaiModel, prompt: "Hello!", abortSignal, maxRetries: 0, ...endless,
    }).then(() => null, (error) => error); // prettier-ignore
    assert.match(String(failure?.name), /Abort|Timeout/);
  },
};

const reasons = {};
for (const [name, job] of Object.entries(jobs)) {
  if (process.argv[4] && !name.includes(process.argv[4])) continue;
  reasons[name] = await job().then(
    () => null,
    (error) => String(error?.stack ?? error).slice(0, 800),
  );
}
console.log(JSON.stringify(reasons));
process.exit(0);
