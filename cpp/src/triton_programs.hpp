// The programs of plan.json, launch by launch.
#pragma once

#include "json_fields.hpp"
#include "triton_plan.hpp"

namespace rescompile::internal {

/// Reads `plan.programs`, checked against the steps, kernels and weights that `plan` already has.
void read_programs(const Json& list, Plan& plan, Mistake& mistake);

}  // namespace rescompile::internal
