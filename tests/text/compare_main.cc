// Cleans and tokenises prompts for record_fixtures.py --compare, which checks the answers against
// the reference. Reads prompts from stdin (32-bit length, bytes); writes for each its cleaned text
// and, as text, the ids of the prompt as it is.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "text/prompt_cleaning.h"
#include "text/tokenizer.h"

namespace {

void write_record(const std::string& text) {
  const auto size = static_cast<uint32_t>(text.size());
  std::fwrite(&size, sizeof(size), 1, stdout);
  std::fwrite(text.data(), 1, size, stdout);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: compare_text MODEL EXTRA_IDS < prompts > answers\n");
    return 2;
  }
  const auto tokenizer =
      ultraflash::Tokenizer::load(argv[1], {.extra_ids = std::strtol(argv[2], nullptr, 10)});
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", tokenizer.status().to_string().c_str());
    return 2;
  }
  uint32_t size = 0;
  std::string prompt;
  while (std::fread(&size, sizeof(size), 1, stdin) == 1) {
    prompt.resize(size);
    if (std::fread(prompt.data(), 1, size, stdin) != size) return 2;
    const auto cleaned = ultraflash::clean_prompt(prompt);
    write_record(cleaned.ok() ? *cleaned : cleaned.status().to_string());
    const auto ids = tokenizer->encode(prompt, ultraflash::kMaxTokens / 16);
    if (!ids.ok()) {
      write_record(ids.status().to_string());
      continue;
    }
    std::string numbers;
    for (int64_t i = 0; i < ids->length; ++i) {
      if (i > 0) numbers += ' ';
      numbers += std::to_string(ids->ids[static_cast<size_t>(i)]);
    }
    write_record(numbers);
  }
  return 0;
}
