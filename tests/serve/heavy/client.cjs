// The official client for Node, as it is: node client.cjs BASE_URL MODEL CALLS_URL CALLS_MODEL TOOLS; prints `ok` or fails.
const assert = require("node:assert");
const OpenAI = require("openai");

const [baseURL, model, callsURL, callsModel, tools] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Ann has 3 apples. Ben gives Ann 4 more apples. How many are there now?" }];

async function refused(asked, status, param) {
  await assert.rejects(client.chat.completions.create({ model, messages, ...asked }), (error) => {
    assert.ok(error instanceof OpenAI.APIError);
    assert.equal(error.status, status);
    assert.equal(error.param, param);
    return true;
  });
}

async function main() {
  const whole = await client.chat.completions.create({ model, messages, logprobs: true });
  const text = whole.choices[0].message.content;
  assert.equal(whole.choices[0].logprobs.content.map((one) => one.token).join("").trim(), text.trim());
  assert.ok(whole.choices[0].mmedge.confidence >= 0 && whole.usage.total_tokens > 0);

  let streamed = "";
  let last;
  const options = { stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await client.chat.completions.create({ model, messages, ...options })) {
    streamed += chunk.choices[0]?.delta?.content ?? "";
    last = chunk;
  }
  assert.equal(streamed, text);
  assert.equal(last.usage.total_tokens, whole.usage.total_tokens);
  assert.equal(await client.chat.completions.stream({ model, messages }).finalContent(), text);
  assert.equal((await client.completions.create({ model, prompt: messages[0].content })).choices[0].text, text);

  const samples = await client.chat.completions.create({ model, messages, n: 3, temperature: 1, seed: 7 });
  const again = await client.chat.completions.create({ model, messages, n: 3, temperature: 1, seed: 7 });
  assert.deepEqual(samples.choices.map((one) => one.message.content), again.choices.map((one) => one.message.content));

  await refused({ model: "gpt-4" }, 404, "model");
  await refused({ response_format: { type: "json_object" } }, 400, "response_format");
  await refused({ tools: [{ type: "function", function: { name: "f" } }] }, 400, "tools");

  for (let round = 0; round < 20; round++) {
    const abort = new AbortController();
    const stream = await client.chat.completions.create({ model, messages, stream: true }, { signal: abort.signal });
    for await (const _ of stream) break;
    abort.abort();
  }
  assert.equal((await client.chat.completions.create({ model, messages })).choices[0].message.content, text);

  const calls = new OpenAI({ baseURL: callsURL, apiKey: "none", maxRetries: 0 });
  const asked = { model: callsModel, messages: [{ role: "user", content: "Buy 3 pears." }], tools: JSON.parse(tools) };
  const called = await calls.chat.completions.create(asked);
  const [call] = called.choices[0].message.tool_calls;
  assert.equal(called.choices[0].finish_reason, "tool_calls");
  const final = await calls.chat.completions.stream(asked).finalChatCompletion();
  assert.equal(final.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
  console.log("ok");
}

main();
