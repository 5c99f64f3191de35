// What lies below NVIDIA's Python bindings of TensorRT in tests/trt_bindings.py: the functions that they link to, and
// objects whose every virtual function tells its number and its arguments to a function of the test's.
//
// TensorRT's interfaces are classes with one pointer to an implementation, which has the virtual functions; here one
// object is both. Which number a function has differs between versions, and is found out by calling.

#include <cstdint>
#include <new>
#include <typeinfo>
#include <utility>

namespace {

using Word = std::int64_t;
using Handler = Word (*)(int slot, Word a, Word b, Word c, Word d, Word e);

constexpr int kSlots = 256;
Handler handler = nullptr;

template <int kSlot>
Word slot(Word a, Word b, Word c, Word d, Word e) {
  return handler(kSlot, a, b, c, d, e);
}

struct Nothing {
  virtual ~Nothing() = default;
};

// As a compiler lays it out: the offset to the whole object, its type, then the functions.
struct Table {
  Word offset = 0;
  std::type_info const* type = &typeid(Nothing);
  void* functions[kSlots];
};

template <int... kSlot>
Table table_of(std::integer_sequence<int, kSlot...>) {
  return Table{0, &typeid(Nothing), {reinterpret_cast<void*>(&slot<kSlot>)...}};
}

Table table = table_of(std::make_integer_sequence<int, kSlots>());

struct Object {
  void* functions = table.functions;
  Object* implementation = this;
};

}  // namespace

extern "C" {

void stub_handler(Handler given) { handler = given; }
void* stub_object() { return new Object; }
// Of what the bindings implement (loggers, monitors, profilers): the virtual function of that number.
Word stub_call(void* object, int number, Word a, Word b, Word c) {
  return (*static_cast<Word (***)(void*, Word, Word, Word)>(object))[number](object, a, b, c);
}
void stub_report(void* profiler, int number, char const* layer, float ms) {
  (*static_cast<void (***)(void*, char const*, float)>(profiler))[number](profiler, layer, ms);
}

void* createInferRuntime_INTERNAL(void* logger, int) {
  return reinterpret_cast<void*>(handler(-1, reinterpret_cast<Word>(logger), 0, 0, 0, 0));
}
void* createInferBuilder_INTERNAL(void* logger, int) {
  return reinterpret_cast<void*>(handler(-2, reinterpret_cast<Word>(logger), 0, 0, 0, 0));
}
void* createInferRefitter_INTERNAL(void*, void*, int) { return nullptr; }
void* createNvOnnxParser_INTERNAL(void* network, void* logger, int) {
  return reinterpret_cast<void*>(handler(-3, reinterpret_cast<Word>(network), reinterpret_cast<Word>(logger), 0, 0, 0));
}
void* createNvOnnxParserRefitter_INTERNAL(void*, void*, int) { return nullptr; }
void* getBuilderPluginRegistry(int) { return nullptr; }
void* getPluginRegistry() { return nullptr; }
int getNvOnnxParserVersion() { return 0; }
bool initLibNvInferPlugins(void*, char const*) { return true; }
}
