# Whether the CUDA operators are built, with which compiler and for which GPUs. Sets
#   NEQ_WITH_CUDA               CUDA is an enabled language
#   NEQ_CUDA_MISSING            why it is not
#   CMAKE_CUDA_ARCHITECTURES    what NEQ_CUDA_ARCHITECTURES asked for, or our own choice
# A compiler decides, never a GPU: a machine without one builds for those that have one. To be
# included before the first target, after CXX is enabled.
set(NEQ_CUDA "AUTO" CACHE STRING "Build CUDA operators: AUTO (if nvcc works), ON or OFF")
set(NEQ_CUDA_ARCHITECTURES "" CACHE STRING
  "GPU architectures in CMake's notation, such as 80-real;90a-real;100, or native; empty: all")

if(NOT NEQ_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "neq_kernels: NEQ_CUDA: expected AUTO, ON or OFF, got '${NEQ_CUDA}'.")
endif()

# No CUDA operators for this reason; where they were required, stop and name the remedy.
macro(neq_without_cuda reason remedy)
  if(NEQ_CUDA STREQUAL "ON")
    message(FATAL_ERROR
      "neq_kernels: NEQ_CUDA=ON: ${reason}. ${remedy}; NEQ_CUDA=OFF builds for the CPU only.")
  endif()
  set(NEQ_CUDA_MISSING "${reason}")
  message(STATUS "neq_kernels: ${reason}, building CPU-only")
endmacro()

function(neq_find_nvcc)
  find_program(nvcc nvcc HINTS "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin"
    PATHS /usr/local/cuda/bin NO_CMAKE_SYSTEM_PATH NO_CACHE)
  if(NOT "$ENV{CUDACXX}" STREQUAL "")
    set(nvcc "$ENV{CUDACXX}")
  endif()
  set(nvcc "${nvcc}" PARENT_SCOPE)
endfunction()

# A kernel of nothing: shows a toolkit that is incomplete, and a host compiler that it refuses.
function(neq_try_nvcc)
  set(folder "${CMAKE_BINARY_DIR}/CMakeFiles")
  file(WRITE "${folder}/neq_probe.cu" "#include <cuda_fp16.h>\n__global__ void probe(__half*) {}\n")
  execute_process(
    COMMAND "${nvcc}" -std=c++17 -ccbin "${CMAKE_CUDA_HOST_COMPILER}" -c neq_probe.cu -o neq_probe.o
    WORKING_DIRECTORY "${folder}" RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  execute_process(COMMAND "${nvcc}" --version OUTPUT_VARIABLE version ERROR_QUIET)
  string(REGEX MATCH "release ([0-9.]+)" version "${version}")
  set(version "${CMAKE_MATCH_1}")
  set(problem "")
  if(NOT status EQUAL 0)
    string(REGEX MATCH "[^\n]*(error|fatal)[^\n]*" line "${output}")
    string(STRIP "${line}" line)
    if(NOT line)
      set(line "${status}")
    endif()
    set(problem "${nvcc} does not compile with ${CMAKE_CUDA_HOST_COMPILER} (${line})")
  elseif(version VERSION_LESS 12.0)
    set(problem "expected CUDA >= 12.0, found ${version} at ${nvcc}")
  endif()
  set(nvcc_problem "${problem}" PARENT_SCOPE)
  set(nvcc_version "${version}" PARENT_SCOPE)
endfunction()

# Refuses what would end in pages of output from a trial compilation.
function(neq_check_architectures)
  execute_process(COMMAND "${nvcc}" --list-gpu-arch OUTPUT_VARIABLE known ERROR_QUIET)
  string(REGEX MATCHALL "[0-9]+" known "${known}")
  foreach(architecture IN LISTS NEQ_CUDA_ARCHITECTURES)
    string(REGEX MATCH "^([0-9]+)[af]?(-real|-virtual)?$" form "${architecture}")
    if(NOT form AND NOT architecture STREQUAL "native" OR form AND NOT CMAKE_MATCH_1 IN_LIST known)
      message(FATAL_ERROR
        "neq_kernels: NEQ_CUDA_ARCHITECTURES: expected native, or a list such as 80-real;90a-real;100 "
        "of what CUDA ${nvcc_version} compiles for (${known}), got '${architecture}'.")
    endif()
  endforeach()
endfunction()

set(NEQ_WITH_CUDA OFF)
set(NEQ_CUDA_MISSING "NEQ_CUDA=OFF when it was built")
if(NOT NEQ_CUDA STREQUAL "OFF")
  neq_find_nvcc()
  if(NOT nvcc)
    neq_without_cuda("found no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda"
      "Install the CUDA toolkit (12.8 or newer for every architecture), or set CUDA_HOME")
  else()
    # The compiler of the rest of the extension, unless the environment says otherwise.
    if(NOT CMAKE_CUDA_HOST_COMPILER)
      set(CMAKE_CUDA_HOST_COMPILER "${CMAKE_CXX_COMPILER}")
      if(DEFINED ENV{CUDAHOSTCXX})
        set(CMAKE_CUDA_HOST_COMPILER "$ENV{CUDAHOSTCXX}")
      endif()
    endif()
    neq_try_nvcc()
    if(nvcc_problem)
      neq_without_cuda("${nvcc_problem}"
        "Install a CUDA toolkit that supports this compiler, or set CUDAHOSTCXX to one it supports")
    else()
      set(NEQ_WITH_CUDA ON)
    endif()
  endif()
endif()

if(NEQ_WITH_CUDA)
  # Turing (which Triton has dropped), Ampere and Ada, Hopper, Blackwell, and PTX for what follows.
  if(NEQ_CUDA_ARCHITECTURES)
    neq_check_architectures()
    set(CMAKE_CUDA_ARCHITECTURES "${NEQ_CUDA_ARCHITECTURES}")
  elseif(nvcc_version VERSION_LESS 12.8)
    set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 90a-real 90-virtual)
  else()
    set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 90a-real 100)
  endif()
  set(CMAKE_CUDA_COMPILER "${nvcc}")
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  enable_language(CUDA)
  message(STATUS
    "neq_kernels: building for GPUs with CUDA ${nvcc_version}: ${CMAKE_CUDA_ARCHITECTURES}")
endif()

# What CMAKE_CUDA_ARCHITECTURES comes to: sm_90a (machine code) and compute_90a (PTX).
function(neq_cuda_codes result)
  set(codes "")
  foreach(entry IN LISTS CMAKE_CUDA_ARCHITECTURES)
    if(entry STREQUAL "native")
      set(entry ${CMAKE_CUDA_ARCHITECTURES_NATIVE})
    endif()
    foreach(architecture IN LISTS entry)
      string(REGEX REPLACE "-(real|virtual)$" "" number "${architecture}")
      if(NOT architecture MATCHES "-virtual$")
        list(APPEND codes "sm_${number}")
      endif()
      if(NOT architecture MATCHES "-real$")
        list(APPEND codes "compute_${number}")
      endif()
    endforeach()
  endforeach()
  set(${result} "${codes}" PARENT_SCOPE)
endfunction()
