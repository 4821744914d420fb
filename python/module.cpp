// neq_kernels._C: what was built, and which instruction set runs. Loading it registers the
// operators with torch (operators.cpp).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "build_info.h"
#include "neq/neq.h"

namespace py = pybind11;

namespace {

constexpr neq_isa kIsas[] = {NEQ_ISA_SCALAR, NEQ_ISA_AVX2, NEQ_ISA_AVX512};

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (const neq_isa isa : kIsas) {
    if (neq_cpu_isa_supported(isa)) names.emplace_back(neq_cpu_isa_name(isa));
  }
  return names;
}

void set_cpu_isa(const std::string& name) {
  for (const neq_isa isa : kIsas) {
    if (name == neq_cpu_isa_name(isa) && neq_cpu_set_isa(isa) == NEQ_OK) return;
  }
  std::string expected;
  for (const std::string& isa : cpu_isas()) expected += (expected.empty() ? "" : ", ") + isa;
  throw std::invalid_argument("cpu_isa: expected one this machine has (" + expected + "), got '" +
                              name + "'");
}

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  std::istringstream stream(list);
  for (std::string part; std::getline(stream, part, ';');) parts.push_back(part);
  return parts;
}

py::dict build_info() {
  using namespace py::literals;
  py::dict info("compiler"_a = NEQ_COMPILER, "flags"_a = NEQ_FLAGS,
                "torch_target"_a = NEQ_TORCH_TARGET, "torch_built_with"_a = NEQ_TORCH_VERSION,
                "cuda"_a = py::none(), "cuda_missing"_a = py::none(),
                "cuda_architectures"_a = split(NEQ_CUDA_CODES), "cpu_isas"_a = cpu_isas(),
                "sources"_a = NEQ_SOURCES);
#ifdef NEQ_WITH_CUDA
  info["cuda"] = NEQ_CUDA_VERSION;
#else
  info["cuda_missing"] = NEQ_CUDA_MISSING;
#endif
  return info;
}

// (CUDA of the kernels, newest CUDA the driver serves), as 13000 for 13.0; 0: none.
std::pair<int32_t, int32_t> cuda_versions() {
  std::pair<int32_t, int32_t> versions{0, 0};
#ifdef NEQ_WITH_CUDA
  if (neq_cuda_versions(&versions.first, &versions.second) != NEQ_OK) {
    throw std::runtime_error(neq_last_error());
  }
#endif
  return versions;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "The native kernels of neq_kernels. Use neq_kernels.native instead.";
  module.def("build_info", &build_info);
  module.def("cuda_versions", &cuda_versions);
  module.def("cpu_isas", &cpu_isas, "Instruction sets this machine has, worst first.");
  module.def("cpu_isa", [] { return std::string(neq_cpu_isa_name(neq_cpu_isa())); });
  module.def("set_cpu_isa", &set_cpu_isa, py::arg("name"));
}
