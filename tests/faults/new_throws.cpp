// operator new on malloc: AddressSanitizer's own ends the program where memory is refused, that of C++ throws.
#include <cstdlib>
#include <new>

namespace {

void* taken(void* memory) {
    if (!memory) throw std::bad_alloc();
    return memory;
}

}  // namespace

void* operator new(std::size_t n) { return taken(std::malloc(n ? n : 1)); }
void* operator new[](std::size_t n) { return taken(std::malloc(n ? n : 1)); }
void* operator new(std::size_t n, std::align_val_t a) {
    void* memory = nullptr;
    return posix_memalign(&memory, static_cast<std::size_t>(a), n ? n : 1) ? taken(nullptr) : taken(memory);
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
