// What the program can be told to do.
#pragma once

namespace sasgd_test {

// Failures are counted by CHECK.
void test_conversions();
void test_random();
void test_precision();
void test_carried();
void test_relative();
void test_steps();  // with the instruction set that is the default
void test_bits();   // with all of them

// Mistakes that CHECK or a sanitizer must notice.
void nudge_weight();
void overrun_tail();
void overrun_vector();
void overrun_param();
void load_bad_bool();
void share_weights();

}  // namespace sasgd_test
