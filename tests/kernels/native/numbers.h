// Arrays of every dtype in memory of exactly their size, and random numbers to fill them with.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "plan.h"
#include "sixteen_bits.h"

namespace sasgd_test {

using sasgd::DType;

// Numbers of a dtype. The memory ends with the last one, so that the address sanitizer sees an access beyond it.
class Numbers {
 public:
  Numbers(int64_t count, DType dtype, bool misaligned = false)
      : dtype_(dtype), skip_(misaligned ? item_size() : 0), bytes_(skip_ + static_cast<size_t>(count) * item_size()) {}

  uint64_t address() const { return reinterpret_cast<uint64_t>(bytes_.data() + skip_); }
  double get(int64_t i) const {
    if (dtype_ == DType::kFloat32) return read<float>(i);
    return plain_widen(read<uint16_t>(i), format());
  }
  void set(int64_t i, float value) {
    if (dtype_ == DType::kFloat32) return write(i, value);
    write(i, plain_narrow(value, format()));
  }
  DType dtype() const { return dtype_; }
  bool operator==(const Numbers& other) const { return bytes_ == other.bytes_; }
  bool operator!=(const Numbers& other) const { return bytes_ != other.bytes_; }
  // Adds the bytes to a digest.
  uint64_t added_to(uint64_t digest) const {
    for (const unsigned char byte : bytes_) digest = (digest ^ byte) * 0x100000001b3u;  // FNV-1a
    return digest;
  }

 private:
  size_t item_size() const { return dtype_ == DType::kFloat32 ? 4 : 2; }
  Format format() const { return dtype_ == DType::kBFloat16 ? kBFloat16Format : kFloat16Format; }
  template <class T>
  T read(int64_t i) const {
    T value;
    std::memcpy(&value, bytes_.data() + skip_ + static_cast<size_t>(i) * sizeof value, sizeof value);
    return value;
  }
  template <class T>
  void write(int64_t i, T value) {
    std::memcpy(bytes_.data() + skip_ + static_cast<size_t>(i) * sizeof value, &value, sizeof value);
  }

  DType dtype_;
  size_t skip_;
  std::vector<unsigned char> bytes_;
};

// The same numbers on every machine: splitmix64.
class Random {
 public:
  float next() {  // in [-1, 1)
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<float>((z ^ (z >> 31)) >> 40) * 0x1p-23f - 1.0f;
  }

 private:
  uint64_t state_ = 2018;
};

}  // namespace sasgd_test
