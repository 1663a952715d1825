# The CUDA executor and the GPU code of training (UF_CUDA). cudart is linked statically; cuBLASLt and
# cuDNN are opened at run time, so one program runs with and without them.
if(UF_CUDA)
  # tools/setup.sh cuda puts one into build/ where there is none.
  find_program(CMAKE_CUDA_COMPILER nvcc
               HINTS /usr/local/cuda/bin ${PROJECT_SOURCE_DIR}/build/cuda-toolkit/nvidia/cu13/bin)
  if(NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR "UF_CUDA=ON, but nvcc was not found; install the CUDA 13 toolkit, run "
            "tools/setup.sh cuda or set CMAKE_CUDA_COMPILER")
  endif()
  string(REPLACE "," ";" CMAKE_CUDA_ARCHITECTURES "${UF_CUDA_ARCHITECTURES}")
  if(UF_CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${UF_CCACHE})
  endif()
  enable_language(CUDA)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.9)
    message(FATAL_ERROR "UF_CUDA=ON needs CUDA 12.9 or later, found ${CMAKE_CUDA_COMPILER_VERSION}")
  endif()
  # CMake 3.25 does not know that this compiler can.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  find_package(CUDAToolkit REQUIRED)

  # Headers alone: what a source file that talks to CUDA's libraries needs, and the runtime.
  add_library(uf_cuda INTERFACE)
  target_link_libraries(uf_cuda INTERFACE CUDA::cudart_static ${CMAKE_DL_LIBS})
  # 2810: nvcc 13.0 takes a constructor that calls another one for a discarded result.
  target_compile_options(uf_cuda INTERFACE
    "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;--diag-suppress=2810;-Xcompiler=-Wall,-Wextra;-lineinfo>"
    "$<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${UF_WERROR}>>:--Werror=all-warnings;-Xcompiler=-Werror>")

  if(NOT UF_CUDNN STREQUAL "OFF")
    find_path(CUDNN_INCLUDE_DIR cudnn.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
    # tools/setup.sh cuda puts it here.
    find_path(CUDNN_FRONTEND_INCLUDE_DIR cudnn_frontend.h
              HINTS ${PROJECT_SOURCE_DIR}/build/cudnn-frontend/include)
    if(CUDNN_INCLUDE_DIR AND CUDNN_FRONTEND_INCLUDE_DIR)
      set(CUDNN_FOUND ON)
      add_library(uf_cudnn INTERFACE)
      target_include_directories(uf_cudnn SYSTEM INTERFACE ${CUDNN_FRONTEND_INCLUDE_DIR}
                                 ${CUDNN_INCLUDE_DIR})
    endif()
  endif()
  uf_optional(UF_CUDNN CUDNN_FOUND "cuDNN 9 with cudnn-frontend (tools/setup.sh cuda)")
else()
  set(UF_CUDNN_ENABLED OFF)
endif()
