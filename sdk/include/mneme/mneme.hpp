// Mneme, all of it: <mneme/core.hpp> and the async_* templates of <mneme/asio.hpp>.
#pragma once

#include <mneme/asio.hpp>
#include <mneme/core.hpp>
#include <mneme/scorer.hpp>
