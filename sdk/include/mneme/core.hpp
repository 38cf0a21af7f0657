// Mneme without Asio's completion tokens: callbacks and poll mode.
#pragma once

#include <mneme/agent.hpp>
#include <mneme/error.hpp>
#include <mneme/event.hpp>
#include <mneme/generation.hpp>
#include <mneme/model.hpp>
#include <mneme/options.hpp>
#include <mneme/runtime.hpp>
#include <mneme/store.hpp>
#include <mneme/types.hpp>
#include <mneme/version.hpp>
