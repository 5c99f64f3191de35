// Messages to TensorRT's logger, or to stderr where there is none that can be used.
#pragma once

#include <string>

namespace mscope::trt {

// The values of TensorRT's ILogger::Severity.
enum class Severity : int { error = 1, warning = 2, info = 3, verbose = 4 };

// What TensorRT hands to setLoggerFinder, an ILoggerFinder of whichever version; null: none.
void set_logger_finder(void* finder) noexcept;

// Never throws. Without a logger, errors and warnings go to stderr and the rest nowhere.
void log(Severity severity, const std::string& message) noexcept;

}  // namespace mscope::trt
