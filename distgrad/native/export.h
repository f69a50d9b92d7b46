// All else that the core contains is hidden from other libraries.
#pragma once

#define EXPORT __attribute__((visibility("default")))
