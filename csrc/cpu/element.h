// The element types as the CPU kernels see them: storage, and the way to and from a sum.
#pragma once

#include <cstdint>
#include <cstring>

namespace neq {

template <class To, class From>
inline To bit_cast(From from) noexcept {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

struct Float {
  using Storage = float;
  using Sum = float;
  static float load(float value) noexcept { return value; }
  static float store(double value) noexcept { return static_cast<float>(value); }
};

struct Double {
  using Storage = double;
  using Sum = double;
  static double load(double value) noexcept { return value; }
  static double store(double value) noexcept { return value; }
};

struct BFloat16 {
  using Storage = uint16_t;
  using Sum = float;
  static float load(uint16_t value) noexcept { return bit_cast<float>(uint32_t{value} << 16); }
  static uint16_t store(double value) noexcept {
    if (value != value) return 0x7fc0;
    const auto bits = bit_cast<uint32_t>(static_cast<float>(value));
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
};

struct Half {
  using Storage = uint16_t;
  using Sum = float;

  // Subnormals come by way of 2^-14 so that a flushed-denormals mode leaves them alone.
  static float load(uint16_t value) noexcept {
    const uint32_t sign = (value & 0x8000u) << 16;
    const uint32_t magnitude = (value & 0x7fffu) << 13;
    uint32_t bits = magnitude + 0x38000000u;
    if (magnitude >= 0x0f800000u) bits = magnitude | 0x7f800000u;
    if (magnitude < 0x00800000u) {
      bits = bit_cast<uint32_t>(bit_cast<float>(magnitude + 0x38800000u) - 0x1p-14f);
    }
    return bit_cast<float>(sign | bits);
  }

  static uint16_t store(double value) noexcept {
    const auto single = static_cast<float>(value);
    const auto bits = bit_cast<uint32_t>(single);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
    if (magnitude < 0x38800000u) {
      // Adding 0.5 leaves the subnormal half, rounded to even, in the low bits of the sum.
      const auto rounded = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f);
      return static_cast<uint16_t>(sign | (rounded - 0x3f000000u));
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
  }
};

}  // namespace neq
